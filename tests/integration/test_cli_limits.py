"""`suanpan limit`: what is said is what is stored, and what is wrong is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Database
from tests.integration.test_cli_commands import Shell

PER_MINUTE = ("--requests-per-minute", "60")
NONE = {
    "requests_per_minute": None,
    "requests_per_day": None,
    "tokens_per_minute": None,
    "tokens_per_day": None,
    "concurrency": None,
}


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    """A site with a user, a key and a priced model."""
    shell = Shell(database, tmp_path / "data")
    shell.json("user", "create", "anna", "--password-stdin", stdin="a password\n")
    return shell


def set_limit(shell: Shell, scope: str, name: str, *limits: str) -> dict[str, object]:
    return shell.json("limit", "set", "--scope", scope, name, *limits)


def test_limits_of_every_scope_are_set_shown_and_taken_away(shell: Shell) -> None:
    key = str(shell.json("key", "create", "--user", "anna")["id"])
    shell.json("price", "set", "gpt-4o:mini", "--input", "1", "--output", "2")
    assert shell.json("limit", "list") == {"limits": []}
    made = set_limit(shell, "key", key, *PER_MINUTE, "--concurrency", "4")
    limits = {**NONE, "requests_per_minute": 60, "concurrency": 4}
    assert made == {"scope": "key", "id": key, "name": key, "limits": limits, "version": 1}
    user = set_limit(shell, "user", "anna", "--tokens-per-day", "100000")
    assert (user["scope"], user["name"]) == ("user", "anna")
    set_limit(shell, "group", "pro", "--tokens-per-minute", "5000")
    set_limit(shell, "model", "gpt-4o:mini", "--requests-per-day", "7")
    found = shell.json("limit", "list")["limits"]
    assert {(one["scope"], one["name"]) for one in found} == {
        ("key", key), ("user", "anna"), ("group", "pro"), ("model", "gpt-4o:mini"),
    }  # fmt: skip
    again = set_limit(shell, "key", key, *PER_MINUTE)
    assert again["limits"] == {**NONE, "requests_per_minute": 60}, "all are set at once"
    assert set_limit(shell, "key", key, *PER_MINUTE)["version"] == 2, "nothing has changed"
    assert set_limit(shell, "key", key, "--none")["limits"] == NONE
    assert key not in {
        one["id"] for one in shell.json("limit", "list")["limits"] if one["scope"] == "key"
    }
    assert "gpt-4o:mini" in shell("limit", "list").stdout


def test_what_cannot_be_limited_is_refused_in_one_sentence(shell: Shell) -> None:
    wrong = (
        ("key", "4711", *PER_MINUTE),
        ("user", "nobody", *PER_MINUTE),
        ("model", "no-such-model", *PER_MINUTE),
        ("group", "no-such-group", *PER_MINUTE),
        ("user", "anna"),
        ("user", "anna", "--requests-per-minute", "0"),
    )
    for scope, name, *limits in wrong:
        assert shell.refused("limit", "set", "--scope", scope, name, *limits)
    assert shell.json("limit", "list") == {"limits": []}
