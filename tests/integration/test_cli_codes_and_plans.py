"""`suanpan code`, `plan` and `subscribe` as an operator types them."""

from __future__ import annotations

import csv
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Database
from tests.integration.test_cli_commands import Shell
from tests.unit.test_plan_text import TOML


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    shell = Shell(database, tmp_path / "data")
    shell.json("user", "create", "anna", "--password-stdin", stdin="a good password")
    return shell


def make(shell: Shell, *more: str) -> tuple[str, list[str]]:
    made = shell.json("code", "create", "--kind", "redeem", "--points", "2.5", *more)
    return made["batch"], made["codes"]


def test_a_batch_is_shown_once_listed_without_its_text_and_voided(shell: Shell) -> None:
    batch, codes = make(shell, "--count", "3", "--expires", "30d")
    assert len(set(codes)) == 3
    listed = shell.json("code", "list", "--batch", batch)
    assert (listed["stale"], listed["next"]) == (False, None)
    assert {one["hint"] for one in listed["codes"]} == {code[-4:] for code in codes}
    assert {(one["points"], one["state"]) for one in listed["codes"]} == {("2.5", "unused")}
    assert shell.json("code", "void", "--code-stdin", stdin=f"{codes[0].lower()}\n") == {
        "voided": 1
    }
    assert shell.json("code", "void", "--batch", batch) == {"voided": 2}
    assert len(shell.json("code", "list", "--state", "void")["codes"]) == 3
    assert "no batch" in shell.refused("code", "void", "--batch", "nothing")
    assert "no such code" in shell.refused("code", "void", "--code-stdin", stdin="SP-1")
    assert "either" in shell.refused("code", "void")


def test_codes_are_printed_as_csv_and_the_batch_is_named_before(shell: Shell) -> None:
    done = shell(
        "code", "create", "--kind", "gift", "--type", "new, year", "--points", "1", "--count", "2"
    )
    head, *rows = list(csv.reader(done.stdout.splitlines()))
    assert head == ["code", "points", "kind", "type", "expires", "batch"]
    assert [row[1:5] for row in rows] == [["1", "gift", "new, year", ""]] * 2
    assert all(row[0].startswith("SG-") for row in rows)
    assert done.stderr == f"batch {rows[0][5]}\n"


def test_what_is_no_batch_is_refused_in_a_sentence(shell: Shell) -> None:
    gift = ("code", "create", "--kind", "gift", "--points", "1", "--count", "1")
    redeem = ("code", "create", "--kind", "redeem", "--count", "1", "--points")
    for arguments, said in (
        (gift, "need a type"),
        ((*redeem, "1", "--type", "x"), "no type"),
        ((*redeem, "0"), "more than zero"),
        ((*redeem, "1.0000001"), "six decimals"),
        ((*redeem, "1", "--expires", "2020-01-01"), "in the past"),
    ):
        assert said in shell.refused(*arguments)


def test_plans_are_set_from_a_file_shown_and_bought(
    shell: Shell, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "plans.toml"
    file.write_bytes(TOML)
    done = shell.json("plan", "set", str(file))
    assert done["changed"] == ["basic", "standard", "pro"]
    assert shell.json("plan", "set", str(file))["changed"] == []
    file.write_bytes(TOML.replace(b'price = "48"', b'price = "50"'))
    assert shell.json("plan", "set", str(file))["changed"] == ["basic"]
    shown = shell.json("plan", "show")["levels"]
    assert (shown["basic"]["price"], shown["basic"]["version"]) == ("50", 2)
    assert shown["basic"]["discounts"] == {"3": "5%", "12": "12.5%"}
    assert "no level" in shell.refused(
        "subscribe", "--user", "anna", "--level", "x", "--months", "1"
    )
    assert "no file" in shell.refused("plan", "set", str(tmp_path / "none"))

    buying = ("subscribe", "--user", "anna", "--level", "basic", "--months", "1")
    assert "500 more are needed" in shell.refused(*buying)
    assert "not offered" in shell.refused(*buying[:4], "standard", "--months", "1")
    shell.json("grant", "--user", "anna", "--points", "520", "--reason", "test")
    bought = shell.json(*buying, "--idempotency-key", "k")
    assert (bought["kind"], bought["price"], bought["available"]) == ("bought", "500", "20")
    assert bought["stream"].startswith("account:")
    assert "topic" not in bought
    again = shell.json(*buying, "--idempotency-key", "k")
    assert again == {**bought, "repeated": True}
    with psycopg.connect(database.superuser_url) as connection:
        types = connection.execute(
            "SELECT type FROM event_log WHERE type LIKE 'Plan%' ORDER BY seq"
        ).fetchall()
    assert types == [("PlanDefined",)] * 4 + [("PlanBought",)]
    assert shell.json("audit")["ok"] is True
