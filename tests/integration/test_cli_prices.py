"""`suanpan price` and `suanpan group` as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.integration.test_cli_commands import Shell

LIST = {
    "as_of": "2026-11-20",
    "currency": "USD",
    "unit": "per 1,000,000 tokens",
    "models": [
        {"name": "a", "input_per_million_usd": 2, "output_per_million_usd": 10},
        {"name": "b", "input_per_million_usd": 1, "output_per_million_usd": 1},
        {"name": "c"},
    ],
}


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path / "data")


def test_a_price_with_every_part_is_set_and_shown(shell: Shell) -> None:
    done = shell.json(
        "price", "set", "m", "--input", "0.1424", "--output", "0.712", "--cached", "0.00712",
        "--cache-write", "0.178", "--cache-write-1h", "0.2848", "--tier", "272000:0.2848:1.068",
        "--window", "22:00-06:00@+08:00=0.5", "--search", "0.1", "--from", "2100-01-01",
    )  # fmt: skip
    assert (done["version"], done["from"]) == (1, "2100-01-01T00:00:00Z")
    price = done["price"]
    assert price["per_1k_cache_write_1h"] == "0.2848"
    assert price["tiers"][0]["above_input_tokens"] == 272_000
    assert (price["windows"], price["per_search"]) == (["22:00-06:00@+08:00=0.5"], "0.1")
    units = ("--image", "4.628", "--second", "0.00712", "--character", "0.001068")
    assert shell.json("price", "set", "tts", *units)["price"] == {
        "unit": "unit",
        "per_image": "4.628",
        "per_second": "0.00712",
        "per_character": "0.001068",
    }


def test_prices_that_cannot_be_are_refused_in_one_sentence(shell: Shell, tmp_path: Path) -> None:
    token = ("price", "set", "m", "--input", "1", "--output", "1")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    refusals = {
        ("price", "set", "--free"): "Name the model",
        ("price", "set", "m", "--model", "m", "--free"): "Name the model",
        ("price", "set", "m", "--free", "--image", "1"): "--per-1k-input",
        ("price", "set", "m", "--tier", "5:1:1"): "together",
        ("price", "set", "m", "--image", "0"): "given as free",
        (*token, "--tier", "5:1:1", "--tier", "5:2:2"): "the same number",
        (*token, "--tier", "5:1:1", "--tier", "4:2:2"): "rising",
        (*token, "--tier", "5:1"): "no tier",
        (*token, "--window", "22-06=1"): "no window",
        (*token, "--window", "22:00-06:00@+15:00=1"): "offset",
        (*token, "--window", "22:00-06:00@+08:00=101"): "factor",
        (*token, "--from", "2020-01-01"): "in the past",
        (*token, "--from", "soon"): "no time",
        ("price", "history", "m"): "never had a price",
        ("price", "import", "builtin"): "--cny-per-usd",
        ("price", "import", "builtin", "--cny-per-usd", "x"): "A rate is",
        ("price", "import", str(tmp_path / "none.json")): "no file",
        ("price", "import", str(broken), "--cny-per-usd", "7"): "price list",
        ("price", "import", "builtin", "--cny-per-usd", "7", "--models", "zzz"): "no model 'zzz'",
        ("price", "accept", str(tmp_path / "none.json")): "no file",
        ("price", "accept", str(broken)): "no proposal",
        ("group", "set", "A B"): "a-z",
        ("group", "set", "vip", "--multiplier", "x"): "no factor",
        ("group", "set", "vip", "--multiplier", "1001"): "between 0 and 1000",
    }
    for arguments, words in refusals.items():
        assert words in shell.refused(*arguments), arguments


def test_a_list_is_reviewed_accepted_and_told_in_the_history(shell: Shell, tmp_path: Path) -> None:
    prices, proposal = tmp_path / "list.json", tmp_path / "proposal.json"
    prices.write_text(json.dumps(LIST))
    shell.json("price", "set", "b", "--input", "0.05", "--output", "0.07")
    review = ("price", "import", str(prices), "--cny-per-usd", "7", "--out", str(proposal))
    found = shell.json(*review)
    assert found["summary"] == {"new": 1, "changed": 1, "same": 0, "unsupported": 1}
    assert [(one["model"], one["status"], one["change"]) for one in found["models"]] == [
        ("a", "new", ""),
        ("b", "changed", "input +40 %"),
    ]
    assert found["unsupported"] == [{"model": "c", "reason": "no price is stated"}]
    assert (found["points_per_unit"], found["proposal"]) == ("70", str(proposal))
    assert "Nothing was set" in shell(*review).stdout
    assert "never had a price" in shell.refused("price", "history", "a")

    done = shell.json("price", "accept", str(proposal), "--models", "b")
    assert done == {"list": "list", "set": ["b"], "as_before": []}
    assert shell.json("price", "accept", str(proposal))["set"] == ["a"]
    assert shell.json("price", "accept", str(proposal))["set"] == []
    assert shell.json(*review)["summary"]["same"] == 2

    first, second = shell.json("price", "history", "b")["versions"]
    assert (first["version"], first["counts"], first["source"]) == (1, False, None)
    assert (second["version"], second["counts"], second["accepted_by"]) == (2, True, "cli")
    assert second["source"] == {
        "list": "list 2026-11-20",
        "currency": "USD",
        "points_per_unit": "70",
    }
    assert second["price"]["per_1k_input"] == "0.07"

    proposal.write_text(proposal.read_text().replace("142400", "1424").replace("140000", "1400"))
    assert "changed after its review" in shell.refused("price", "accept", str(proposal))


def test_groups_are_defined_and_listed_with_the_levels(shell: Shell) -> None:
    assert shell.json("group", "set", "vip", "--multiplier", "0.8", "--models", "a, b") == {
        "name": "vip",
        "multiplier": "0.8",
        "models": ["a", "b"],
        "version": 1,
    }
    shell.json("group", "set", "basic", "--multiplier", "0.9")
    groups = shell.json("group", "list")["groups"]
    assert [(one["name"], one["multiplier"], one["version"]) for one in groups] == [
        ("normal", "1", 0),
        ("basic", "0.9", 1),
        ("standard", "1", 0),
        ("pro", "1", 0),
        ("vip", "0.8", 1),
    ]
