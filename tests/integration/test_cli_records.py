"""Statements, requests, exports and the ledger from the command line, with filters."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import Database
from tests.integration.test_cli_commands import Shell


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    """A site of two users."""
    shell = Shell(database, tmp_path / "data")
    for name in ("anna", "bert"):
        shell.json("user", "create", name, "--password-stdin", stdin="a password\n")
    return shell


def test_a_statement_is_filtered_paged_and_given_for_a_moment(shell: Shell) -> None:
    for points in ("5", "0.5", "7"):
        shell.json("grant", "--user", "anna", "--points", points, "--reason", "x")
    whole = shell.json("statement", "--user", "anna")
    assert [entry["amount"] for entry in whole["entries"]] == ["7", "0.5", "5"]
    assert whole["next"] is None
    some = shell.json("statement", "--user", "anna", "--at-least", "1", "--limit", "1")
    assert [entry["amount"] for entry in some["entries"]] == ["7"]
    rest = shell.json("statement", "--user", "anna", "--at-least", "1", "--before", some["next"])
    assert [entry["amount"] for entry in rest["entries"]] == ["5"]
    assert shell.json("statement", "--user", "anna", "--direction", "out")["entries"] == []
    assert shell.json("statement", "--user", "anna", "--kind", "gift")["entries"] == []
    every = shell.json("statement")
    assert {entry["account"] for entry in every["entries"]} == {"account:1"}
    at = shell.json("statement", "--user", "anna", "--at", "2020-01-01")
    assert (at["posted"], at["version"]) == ("0", 0)
    now = shell.json("statement", "--user", "anna", "--at", "2100-01-01T00:00:00Z")
    assert (now["posted"], now["held"], now["available"]) == ("12.5", "0", "12.5")


def test_wrong_filters_are_said_in_one_sentence(shell: Shell, tmp_path: Path) -> None:
    out = str(tmp_path / "x.csv")
    refusals: dict[tuple[str, ...], str] = {
        ("statement", "--kind", "x"): "`kind` is one of",
        ("statement", "--since", "soon"): "no time",
        ("statement", "--user", "anna", "--before", "1.2.3"): "`before`",
        ("statement", "--at", "2026-01-01"): "--at needs --user",
        ("requests", "--outcome", "x"): "`outcome` is one of",
        ("requests", "--at-least", "1e3"): "`at_least`",
        ("ledger", "--user", "anna", "--stream", "account:1"): "Either",
        ("ledger", "--stream", "person:1"): "`stream`",
        ("ledger", "--event", "01977420-dc12-7180-b5bf-992dc9e9c614"): "no such entry",
        ("export", "statement", "--outcome", "late", "--out", out): "not looked for",
        ("export", "statement", "--user", "carl", "--out", out): "no user",
        ("export", "statement", "--out", str(tmp_path / "no" / "x.csv")): "cannot be written",
    }
    for arguments, words in refusals.items():
        assert words in shell.refused(*arguments), arguments
    assert not Path(out).exists()


def test_the_ledger_is_explored_by_user_stream_and_event(shell: Shell) -> None:
    shell.json("grant", "--user", "anna", "--points", "5", "--reason", "x")
    page = shell.json("ledger", "--user", "anna")
    assert [entry["type"] for entry in page["entries"]] == ["PointsGranted", "AccountOpened"]
    granted = page["entries"][0]
    assert granted["prev_hash"] == page["entries"][1]["hash"]
    assert granted["payload"]["amount_upt"] == 5_000_000
    assert shell.json("ledger", "--stream", "account:1") == page
    assert shell.json("ledger", "--event", granted["event_id"])["entries"] == [granted]
    assert shell.json("ledger", "--user", "bert", "--type", "PointsGranted")["entries"] == []
    whole = shell.json("ledger", "--limit", "2")
    rest = shell.json("ledger", "--before", whole["next"])
    assert {entry["stream"] for entry in whole["entries"] + rest["entries"]} == {
        "account:1", "account:2",
    }  # fmt: skip
    table = shell("ledger", "--user", "anna").stdout
    assert "PointsGranted" in table
    assert "suanpan.ledger/" in table


@pytest.mark.parametrize("shape", ["csv", "jsonl"])
def test_an_export_is_written_whole_and_says_how_much_it_is(
    shell: Shell, tmp_path: Path, shape: str
) -> None:
    for points in ("5", "0.5"):
        shell.json("grant", "--user", "anna", "--points", points, "--reason", "x")
    out = tmp_path / f"out.{shape}"
    done = shell.json("export", "statement", "--user", "anna", "--format", shape, "--out", str(out))
    assert done == {"file": str(out), "rows": 2, "bytes": out.stat().st_size, "stale": False}
    assert out.stat().st_mode & 0o777 == 0o600
    lines: list[Any]
    if shape == "csv":
        with out.open(newline="") as text:
            lines = list(csv.DictReader(text))
    else:
        lines = [msgspec.json.decode(line) for line in out.read_bytes().splitlines()]
    assert [line["balance"] for line in lines] == ["5", "5.5"]
    none = shell.json("export", "statement", "--kind", "gift", "--out", str(tmp_path / "none"))
    assert none["rows"] == 0
    ledger = shell.json("export", "ledger", "--out", str(tmp_path / "ledger.csv"))
    assert ledger["rows"] == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
