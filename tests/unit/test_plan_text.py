"""Plans as an operator writes them: read exactly, and refused with one sentence otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backend.catalog.plan_text import format_cny, level_of, plan_data, read_plans
from schemas.errors import BadRequest
from schemas.money import MicroPoints
from schemas.plans import Plan, PlanItem

TOML = b"""
relay = true
time_zone = "Asia/Shanghai"
discounts = { 3 = "5%", 12 = "12.5%", 6 = "0%" }

[levels.basic]
name = "Basic"
price = "48"
items = [
    { id = "chat", name = "Chat", icon = "bolt", models = ["a", "b"], monthly_calls = 50 },
]

[levels.2]
price = "99.9"
enabled = false
import = ["basic"]
items = [{ id = "draw", models = ["c"], monthly_calls = -1 }]

[levels.pro]
price = "200"
import = ["standard"]
items = [{ id = "chat", models = ["a", "b", "d"], monthly_calls = -1 }]
"""
CHAT = PlanItem("chat", "Chat", ("a", "b"), 50, "bolt")
DRAW = PlanItem("draw", "draw", ("c",), -1)


def written(**changes: Any) -> bytes:
    basic: dict[str, Any] = {
        "price": "1",
        "items": [{"id": "x", "models": ["m"], "monthly_calls": 1}],
    }
    return json.dumps({"levels": {"basic": basic | changes.pop("basic", {})}, **changes}).encode()


def test_a_file_becomes_the_plans_of_its_levels() -> None:
    plans = read_plans(TOML)
    discounts = ((3, 50_000), (12, 125_000))
    price_upt = MicroPoints(480_000_000)
    assert plans[1] == Plan(
        "Basic", price_upt, (CHAT,), relay=True, discounts=discounts, time_zone="Asia/Shanghai"
    )
    assert (plans[2].month_price_upt, plans[2].enabled) == (999_000_000, False)
    assert plans[2].items == (DRAW, CHAT)
    assert [item.id for item in plans[3].items] == ["chat", "draw"]
    assert plans[3].items[0].models == ("a", "b", "d"), "an own item wins over an imported one"


def test_toml_and_json_say_the_same() -> None:
    as_json = written(discounts={"3": "5%"})
    as_toml = (
        b'discounts = {3 = "5%"}\n[levels.basic]\nprice = "1"\n'
        b'items = [{id = "x", models = ["m"], monthly_calls = 1}]\n'
    )
    assert read_plans(as_json) == read_plans(as_toml)


def test_what_is_shown_can_be_read_again() -> None:
    plan = read_plans(written(basic={"price": "0.000001"}))[1]
    assert format_cny(plan.month_price_upt) == "0.000001"
    data = plan_data(plan)
    del data["month_points"]
    assert read_plans(json.dumps({"levels": {"1": data}}).encode()) == {1: plan}


def test_levels_have_numbers_and_names() -> None:
    assert [level_of(text) for text in ("1", "Basic", " standard", "3")] == [1, 1, 2, 3]
    for text in ("0", "normal", "4", ""):
        with pytest.raises(BadRequest, match="no level"):
            level_of(text)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff", "not UTF-8"),
        (b"levels = [", "no TOML"),
        (b"{", "not as they should be"),
        (b"{}", "levels"),
        (b'{"levels": {}}', "no level"),
        (written(levls=1), "levls"),
        (written(basic={"price": 1.5}), "price"),
        (written(basic={"price": "1.0000001"}), "six decimals"),
        (written(basic={"price": "0"}), "above zero"),
        (written(basic={"price": "99999999"}), "no sum"),
        (written(basic={"items": []}), "no items"),
        (written(basic={"import": ["basic"]}), "imports itself"),
        (written(basic={"import": ["pro"]}), "do not name"),
        (written(basic={"name": " x"}), "name has"),
        (written(basic={"items": [{"id": "x", "models": [], "monthly_calls": 1}]}), "models"),
        (written(basic={"items": [{"id": "x", "models": ["m"], "monthly_calls": 0}]}), "calls"),
        (
            written(basic={"items": [{"id": "x", "models": ["m"], "monthly_calls": 1}] * 2}),
            "two items of one id",
        ),
        (written(discounts={"2": "5%"}), "no term"),
        (written(discounts={"3": "5"}), "no discount"),
        (written(discounts={"3": "100%"}), "below 100%"),
        (written(discounts={"3": "0.00001%"}), "four decimals"),
        (written(discounts={"3": "1%", "03": "2%"}), "twice"),
        (written(time_zone="Mars/Olympus"), "no time zone"),
        (written(time_zone="../etc/passwd"), "no time zone"),
        (json.dumps({"levels": {"1": {"price": "1"}, "basic": {"price": "2"}}}).encode(), "twice"),
        (b" " * (1024 * 1024 + 1), "at most"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(data: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        read_plans(data)
    assert caught.value.sentence.endswith(".")


def test_levels_that_import_one_another_are_refused() -> None:
    item = {"id": "x", "models": ["m"], "monthly_calls": 1}
    levels = {
        "basic": {"price": "1", "items": [item], "import": ["pro"]},
        "pro": {"price": "2", "items": [item], "import": ["basic"]},
    }
    with pytest.raises(BadRequest, match="imports itself"):
        read_plans(json.dumps({"levels": levels}).encode())
