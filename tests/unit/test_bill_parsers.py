"""Each provider's export becomes the same lines, whatever file it came in."""

from __future__ import annotations

import io
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from projections.reconcile.bill import Bill, BillFile, Period, Used
from projections.reconcile.run import Provider, parse_bill
from schemas.errors import BadRequest

BILLS: Final = Path(__file__).resolve().parents[1] / "bills"
SECOND_US: Final = 1_000_000
DAY_S: Final = 86_400
JUNE_15_S: Final = 1_749_945_600
"""2025-06-15T00:00:00Z."""


def bill_file(name: str) -> BillFile:
    return BillFile(name, (BILLS / name).read_bytes())


def parsed(provider: Provider, *names: str, time_zone: str | None = None) -> Bill:
    return parse_bill(provider, [bill_file(name) for name in names], time_zone)


def day(begin_s: int) -> Period:
    return Period(begin_s * SECOND_US, (begin_s + DAY_S) * SECOND_US)


def test_openai_usage_adds_keys_up_and_takes_cached_input_out() -> None:
    bill = parsed(Provider.OPENAI, "openai_usage.json")
    (line,) = bill.usage
    assert (line.period, line.model) == (day(JUNE_15_S), "gpt-4o-2024-08-06")
    assert line.used == Used(requests=6, uncached=300, cached=800, output=550)
    assert bill.periods == (day(JUNE_15_S), day(JUNE_15_S + DAY_S)), "an empty day is told too"


def test_openai_costs_are_exact_decimals_per_model() -> None:
    bill = parsed(Provider.OPENAI, "openai_usage.json", "openai_costs.json")
    (line,) = bill.costs
    assert (line.model, line.cost, bill.currency) == (
        "gpt-4o-2024-08-06", Decimal("0.00725"), "USD",
    )  # fmt: skip
    assert len(bill.usage) == 1


def test_openai_csv_hours_are_read_and_empty_ones_told() -> None:
    bill = parsed(Provider.OPENAI, "openai_usage.csv")
    hours = [(p.from_us // SECOND_US - JUNE_15_S, p.to_us - p.from_us) for p in bill.periods]
    assert hours == [(0, 3_600 * SECOND_US), (3_600, 3_600 * SECOND_US)]
    assert bill.usage[0].used == Used(requests=3, uncached=5_882, cached=1_280, output=40)


def test_openai_cost_rows_with_quantities_tell_usage_to_the_unit_they_are_in() -> None:
    bill = parsed(Provider.OPENAI, "openai_cost.csv")
    (line,) = bill.usage
    assert line.used == Used(uncached=1_250_000, output=12_400)
    assert line.rounding == 5_000 + 50, "half of 0.01 million, and half of 0.1 thousand"
    assert bill.costs[0].cost == Decimal("0.50383598")


def test_anthropic_usage_is_disjoint_and_counts_no_requests() -> None:
    (line,) = parsed(Provider.ANTHROPIC, "anthropic_usage.json").usage
    assert line.used == Used(uncached=1_500, cached=200, cache_write=1_500, output=500)
    assert line.period == day(JUNE_15_S)


def test_anthropic_costs_are_in_cents() -> None:
    bill = parsed(Provider.ANTHROPIC, "anthropic_cost.json")
    assert {line.model: line.cost for line in bill.costs} == {
        "claude-sonnet-4-20250514": Decimal("1.2345"),
        "web_search": Decimal("0.1"),
    }


def test_anthropic_console_export_is_read_as_utc_days() -> None:
    (line,) = parsed(Provider.ANTHROPIC, "anthropic_tokens.csv").usage
    assert line.used == Used(uncached=101, cached=40, cache_write=50, output=52)
    assert line.period == day(JUNE_15_S)


def test_deepseek_days_are_beijings_and_both_wallets_pay() -> None:
    bill = parsed(Provider.DEEPSEEK, "deepseek_amount.csv", "deepseek_cost.csv")
    (line,), (cost,) = bill.usage, bill.costs
    assert line.used == Used(requests=4, uncached=3_000, cached=1_000, output=700)
    assert line.period == cost.period == day(JUNE_15_S - 8 * 3_600)
    assert (cost.cost, cost.listed, bill.currency) == (
        Decimal("0.00442"), Decimal("0.00442"), "CNY",
    )  # fmt: skip


def test_deepseek_zip_with_marks_and_carriage_returns_is_the_same_bill() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("deepseek_amount.csv", "deepseek_cost.csv"):
            text = (BILLS / name).read_text("utf-8").replace("\n", "\r\n")
            archive.writestr(name, "\ufeff" + text)
        archive.writestr("readme.txt", "nothing")
    packed_file = BillFile("usage_data.zip", packed.getvalue())
    expected = parsed(Provider.DEEPSEEK, "deepseek_amount.csv", "deepseek_cost.csv")
    assert parse_bill(Provider.DEEPSEEK, [packed_file], None) == expected


def test_deepseek_utc_dates_are_utc_unless_a_time_zone_is_named() -> None:
    bill = parsed(Provider.DEEPSEEK, "deepseek_amount_utc.csv")
    assert bill.usage[0].period == day(JUNE_15_S)
    assert bill.usage[0].used == Used(requests=4, output=700)
    told = parsed(Provider.DEEPSEEK, "deepseek_amount_utc.csv", time_zone="Asia/Shanghai")
    assert told.usage[0].period == day(JUNE_15_S - 8 * 3_600)


def test_a_deepseek_time_without_an_offset_is_beijings() -> None:
    text = (BILLS / "deepseek_amount.csv").read_text("utf-8").replace("+08:00", "")
    bill = parse_bill(Provider.DEEPSEEK, [BillFile("amount.csv", text.encode())], None)
    assert bill.periods == (day(JUNE_15_S - 8 * 3_600),)


def test_a_day_on_which_clocks_change_has_as_many_hours_as_it_has() -> None:
    text = "user_id,utc_date,model,type,price,amount\nu,2025-03-30,m,output_tokens,,1\n"
    bill = parse_bill(Provider.DEEPSEEK, [BillFile("a.csv", text.encode())], "Europe/Berlin")
    assert bill.periods[0].to_us - bill.periods[0].from_us == 23 * 3_600 * SECOND_US


USAGE_PAGE = (BILLS / "openai_usage.json").read_bytes()


@pytest.mark.parametrize(
    ("provider", "data", "words"),
    [
        (Provider.OPENAI, b'{"data": 1}', "no page of OpenAI"),
        (Provider.OPENAI, b"", "empty"),
        (Provider.OPENAI, b"a,b\n1,2\n", "no time"),
        (Provider.OPENAI, b"start_time,end_time,x\n1,2,3\n", "neither `input_tokens`"),
        (Provider.OPENAI, USAGE_PAGE.replace(b"false,\n  \"next", b"true,\n  \"next"), "more"),
        (Provider.OPENAI, USAGE_PAGE.replace(b'"gpt-4o-2024-08-06"', b"null"), "grouped by model"),
        (Provider.OPENAI, USAGE_PAGE.replace(b"1750032000", b"1750032001", 1), "overlap"),
        (Provider.ANTHROPIC, b'{"data": [{"starting_at": "x", "ending_at": "y"}]}', "no time"),
        (Provider.ANTHROPIC, b"date,tokens\n2025,1\n", "no export of Anthropic"),
        (Provider.DEEPSEEK, b"PK\x03\x04broken", "unpacked"),
        (Provider.DEEPSEEK, b"user_id,model\nu,m\n", "neither an amount nor a cost"),
        (Provider.DEEPSEEK,
         b"utc_date,model,type,price,amount\n2025-06-15,m,images,,1\n", "not known"),
        (Provider.DEEPSEEK,
         b"utc_date,model,type,price,amount\n2025-06-15,m,output_tokens,,-1\n", "no count"),
        (Provider.DEEPSEEK,
         b"utc_date,model,cost,currency\n2025-06-15,m,1,CNY\n2025-06-15,m,1,USD\n", "mixes"),
    ],
)  # fmt: skip
def test_another_shape_is_refused_with_a_sentence(
    provider: Provider, data: bytes, words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_bill(provider, [BillFile("bill", data)], None)


def test_a_file_given_twice_and_a_zone_that_is_none_are_refused() -> None:
    with pytest.raises(BadRequest, match="twice"):
        parsed(Provider.OPENAI, "openai_usage.json", "openai_usage.json")
    with pytest.raises(BadRequest, match="no time zone"):
        parsed(Provider.OPENAI, "openai_usage.json", time_zone="Mars/Base")
