"""The `suanpan` command as an operator types it: processes, a real database, pure stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from tests.conftest import Database

SECRET = "q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+"
ROOT = Path(__file__).resolve().parents[2]
TAMPER = """
UPDATE streams SET state = convert_to('{"person":1,"issued_upt":99000000}', 'UTF8')
WHERE stream = 'account:1'
"""


class Shell:
    """Runs commands against one site."""

    def __init__(self, database: Database, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "SUANPAN_DATA_DIR": str(data_dir),
            "DATABASE_URL": database.app_url,
            "DATABASE_OWNER_URL": database.owner_url,
            "SECRET": SECRET,
            **settings,
        }

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backend.cli", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            env=self._environment,
        )

    def json(self, *arguments: str, stdin: str = "", code: int = 0) -> Any:
        """The one object on stdout of a command with `--json`."""
        done = self(*arguments, "--json", stdin=stdin)
        assert done.returncode == code, done.stderr
        assert done.stdout.endswith("\n")
        decoded = msgspec.json.decode(done.stdout)
        assert isinstance(decoded, dict)
        return decoded

    def refused(self, *arguments: str, stdin: str = "") -> str:
        """The error of a command that must fail: on stderr, one line, nothing on stdout."""
        done = self(*arguments, "--json", stdin=stdin)
        assert done.returncode not in (0, None)
        assert done.stdout == ""
        assert done.stderr != ""
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path / "data")


@pytest.fixture
def anna(shell: Shell) -> Shell:
    """A site with one user."""
    shell.json("user", "create", "anna", "--password-stdin", stdin="a password\n")
    return shell


def test_a_user_is_created_checked_and_given_a_new_password(shell: Shell) -> None:
    made = shell.json("user", "create", "Root", "--admin", "--password-stdin", stdin="first pass\n")
    assert made == {"id": 1, "user": "Root", "administrator": True, "granted": "10"}
    check = ("user", "check", "root", "--password-stdin")
    assert shell.json(*check, stdin="first pass") == {"ok": True}
    assert shell.json(*check, stdin="first pas", code=1) == {"ok": False}
    shell.json("user", "password", "root", "--password-stdin", stdin="second pass\r\n")
    assert shell.json(*check, stdin="first pass", code=1) == {"ok": False}
    assert shell(*check, stdin="second pass").returncode == 0
    assert shell.json("balance", "--user", "root") == {
        "posted": "10",
        "held": "0",
        "available": "10",
    }


def test_what_cannot_be_is_said_on_stderr(anna: Shell) -> None:
    refusals = {
        ("user", "create", "Anna", "--password-stdin"): "taken",
        ("user", "create", "bert", "--password-stdin"): "at least 8",
        ("balance", "--user", "bert"): "no user",
        ("grant", "--user", "anna", "--points", "1e3", "--reason", "x"): "plain decimal",
        ("grant", "--user", "anna", "--points", "0.0000001", "--reason", "x"): "six decimals",
        ("key", "create", "--user", "anna", "--expires", "soon"): "no time",
        ("key", "create", "--user", "anna", "--quota", "0"): "more than zero",
        ("key", "create", "--user", "anna", "--quota", "1e3"): "plain decimal",
        ("key", "create", "--user", "anna", "--reset", "daily"): "needs a quota",
        ("key", "create", "--user", "anna", "--reset", "hourly"): "monthly",
        ("key", "create", "--user", "anna", "--addresses", "10.0.0.0/33"): "no network",
        ("key", "create", "--user", "anna", "--concurrency", "0"): "from 1",
        ("key", "create", "--user", "anna", "--group", "A B"): "a-z",
        ("key", "create", "--user", "anna", "--scopes", "root"): "no scope",
        ("key", "create", "--user", "anna", "--scopes", "admin"): "administrator",
        ("invitation", "issue", "--user", "bert"): "no user",
        ("key", "revoke", "12345"): "no such key",
        ("price", "set", "--model", "m"): "--per-1k-input",
        ("price", "set", "--model", "m", "--per-call", "-1"): "not negative",
        ("channel", "enable", "none"): "no channel",
        ("statement", "--user", "bert"): "no user",
        ("replay", "--from", "kafka"): "KAFKA_BOOTSTRAP_SERVERS",
        ("recover",): "KAFKA_BOOTSTRAP_SERVERS",
        ("parked", "retry", "account:1"): "not parked",
    }
    for arguments, words in refusals.items():
        stdin = "a password" if "Anna" in arguments else "short"
        assert words in anna.refused(*arguments, stdin=stdin), arguments


def test_secrets_are_taken_from_stdin_and_never_from_arguments(anna: Shell) -> None:
    assert "--password-stdin" in anna.refused("user", "create", "bert")
    assert "--secret-stdin" in anna.refused(
        "channel", "add", "--name", "c", "--base-url", "http://h/v1", "--models", "m"
    )
    assert "one line" in anna.refused("user", "create", "b", "--password-stdin", stdin="two\nlines")


def test_a_grant_with_a_key_is_made_once_and_answered_again(anna: Shell) -> None:
    grant = ("grant", "--user", "anna", "--points", "2.5", "--reason", "welcome")
    first = anna.json(*grant, "--idempotency-key", "k1")
    assert first == {
        "user": "anna",
        "granted": "2.5",
        "stream": "account:1",
        "version": 2,
        "repeated": False,
    }
    assert anna.json(*grant, "--idempotency-key", "k1") == {**first, "repeated": True}
    other = ("grant", "--user", "anna", "--points", "3", "--reason", "welcome")
    assert "idempotency key" in anna.refused(*other, "--idempotency-key", "k1")
    anna.json(*grant)
    assert anna.json("balance", "--user", "anna")["available"] == "5"


def test_a_key_is_shown_once_listed_and_revoked_by_number_or_text(anna: Shell) -> None:
    create = ("key", "create", "--user", "anna", "--name", "laptop", "--models", "a,b")
    first = anna.json(*create, "--expires", "30d")
    second = anna.json(*create)
    assert first["key"].startswith("sk-")
    assert first["expires"].endswith("Z")
    assert second["expires"] is None
    assert anna.json("key", "revoke", str(first["id"]))["changed"]
    assert not anna.json("key", "revoke", "--key-stdin", stdin=first["key"])["changed"]
    assert anna.json("key", "revoke", second["key"]) == {
        "id": second["id"],
        "revoked": True,
        "changed": True,
    }
    listed = anna("key", "list", "--user", "anna", "--json").stdout
    assert first["key"] not in listed
    assert [key["revoked"] for key in msgspec.json.decode(listed)["keys"]] == [True, True]


def test_a_key_is_bound_by_its_options_and_listed_with_them(shell: Shell) -> None:
    shell.json("user", "create", "root", "--admin", "--password-stdin", stdin="a password\n")
    plain = shell.json("key", "create", "--user", "root")
    bound = shell.json(
        "key", "create", "--user", "root", "--name", "app", "--quota", "2.5", "--reset", "weekly",
        "--addresses", "10.1.2.3/8, 2001:DB8::/32", "--concurrency", "4", "--group", "team",
        "--scopes", "admin,relay",
    )  # fmt: skip
    rules = {
        "models": [],
        "expires": None,
        "scopes": ["relay", "admin"],
        "quota": "2.5",
        "reset": "weekly",
        "addresses": ["10.0.0.0/8", "2001:db8::/32"],
        "concurrency": 4,
        "group": "team",
    }
    assert {name: bound[name] for name in rules} == rules
    assert (plain["scopes"], plain["quota"], plain["reset"]) == (["relay", "wallet"], None, "never")
    assert (plain["addresses"], plain["concurrency"], plain["group"]) == ([], None, None)
    listed = {key["id"]: key for key in shell.json("key", "list", "--user", "root")["keys"]}
    assert {name: listed[bound["id"]][name] for name in rules} == rules
    assert "2.5 weekly" in shell("key", "list", "--user", "root").stdout


def test_an_invitation_is_issued_and_rewards_by_the_settings(
    database: Database, tmp_path: Path
) -> None:
    rewarding = Shell(
        database,
        tmp_path / "data",
        INVITATIONS_INVITER_POINTS="3",
        INVITATIONS_INVITED_POINTS="2",
        ACCOUNTS_INITIAL_POINTS="0.5",
    )
    create = ("user", "create", "--password-stdin")
    assert rewarding.json(*create, "anna", stdin="a password")["granted"] == "0.5"
    code = rewarding.json("invitation", "issue", "--user", "anna")["invitation"]
    made = rewarding.json(*create, "bert", "--invitation", code, stdin="a password")
    assert made["granted"] == "2.5"
    assert rewarding.json("balance", "--user", "anna")["available"] == "3.5"
    assert rewarding.json("balance", "--user", "bert")["available"] == "2.5"
    unknown = rewarding.refused(*create, "cleo", "--invitation", code + "a", stdin="a password")
    assert "not valid" in unknown


def test_channels_are_added_listed_and_switched(anna: Shell) -> None:
    added = anna.json(
        "channel", "add", "--name", "one", "--base-url", "http://127.0.0.1:9/v1/",
        "--secret-stdin", "--models", "a, b", "--map", "a>x", "--priority", "3", "--weight", "2",
        stdin="sk-canary-secret\n",
    )  # fmt: skip
    assert added == {"id": added["id"], "name": "one", "ended_trial": False}
    assert anna.json("channel", "disable", "one")["enabled"] is False
    done = anna("channel", "list", "--json")
    assert "sk-canary" not in done.stdout + done.stderr
    (channel,) = msgspec.json.decode(done.stdout)["channels"]
    assert channel["base_url"] == "http://127.0.0.1:9/v1"
    assert (channel["models"], channel["mapping"]) == (["a", "b"], {"a": "x"})
    assert (channel["priority"], channel["weight"]) == (3, 2)
    assert (channel["enabled"], channel["has_secret"]) == (False, True)
    assert anna.json("channel", "enable", str(added["id"]))["enabled"] is True
    tested = anna.json("channel", "test", "one", code=1)
    assert (tested["ok"], tested["cause"]) == (False, "refused")


def test_prices_are_set_in_points_and_numbered(anna: Shell) -> None:
    token = ("price", "set", "--model", "m", "--per-1k-input", "0.5", "--per-1k-output", "1.25")
    assert anna.json(*token) == {
        "model": "m",
        "version": 1,
        "price": {
            "unit": "token",
            "per_1k_input": "0.5",
            "per_1k_output": "1.25",
            "per_1k_cached_input": "0.5",
        },
    }
    assert anna.json(*token)["version"] == 1
    assert anna.json(*token, "--per-1k-cached-input", "0.05")["version"] == 2
    call = anna.json("price", "set", "--model", "m", "--per-call", "1")
    assert (call["version"], call["price"]) == (3, {"unit": "call", "per_call": "1"})
    assert anna.json("price", "set", "--model", "m", "--free")["price"] == {"unit": "free"}


def test_statements_and_requests_show_what_happened(anna: Shell) -> None:
    for points in ("1", "2"):
        anna.json("grant", "--user", "anna", "--points", points, "--reason", "r")
    statement = anna.json("statement", "--user", "anna", "--limit", "1")
    (entry,) = statement["entries"]
    assert (entry["kind"], entry["amount"], entry["balance"]) == ("grant", "2", "3")
    assert not statement["stale"]
    older = anna.json("statement", "--user", "anna", "--before", str(statement["next"]))
    assert [entry["balance"] for entry in older["entries"]] == ["1"]
    assert anna.json("requests") == {"requests": [], "next": None, "stale": False}
    assert anna.json("requests", "--user", "anna")["requests"] == []


def test_audit_replay_and_rebuild_agree_and_a_changed_state_is_found(
    anna: Shell, database: Database
) -> None:
    anna.json("grant", "--user", "anna", "--points", "1", "--reason", "r")
    rebuilt = anna.json("projection", "rebuild", "balance")
    assert rebuilt["events"] == 2
    replayed = anna.json("replay", "--from", "table")
    assert replayed["differences"] == []
    assert replayed["position"].keys() == {"epoch", "xid", "seq"}
    audited = anna.json("audit")
    assert audited["ok"]
    assert audited["digest"] == replayed["digest"]
    assert {"id", "ok", "violations", "first"} <= audited["checks"][0].keys()
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(TAMPER)
    assert anna.json("replay", code=1)["differences"]
    failed = anna.json("audit", code=1)
    first = next(check["first"] for check in failed["checks"] if not check["ok"])
    assert first["stream"] == "account:1"


def test_words_for_people_are_one_sentence_or_a_table(anna: Shell) -> None:
    assert (
        "5 points granted to anna"
        in anna("grant", "--user", "anna", "--points", "5", "--reason", "r").stdout
    )
    assert "5 points available" in anna("balance", "--user", "anna").stdout
    lines = anna("statement", "--user", "anna").stdout.splitlines()
    assert lines[0].split()[:4] == ["time", "what", "points", "balance"]
    assert lines[1].split()[1:4] == ["grant", "5", "5"]


def test_migrating_again_changes_nothing(shell: Shell) -> None:
    assert shell.json("migrate") == {"applied": []}


def test_a_database_without_tables_asks_for_migrate(
    empty_database: Database, tmp_path: Path
) -> None:
    shell = Shell(empty_database, tmp_path)
    assert "suanpan migrate" in shell.refused("balance", "--user", "anna")
    files = sorted(path.name for path in (ROOT / "backend/journal/migrations").glob("*.sql"))
    assert "0001_log.sql" in files
    assert shell.json("migrate")["applied"] == files
    assert "no user" in shell.refused("balance", "--user", "anna")


def test_a_site_that_does_not_run_is_said_to(shell: Shell) -> None:
    shell._environment["PORT"] = "9"
    found = shell.json("health", code=1)
    assert found["status"] == "not running"
    assert "127.0.0.1:9" in found["why"][0]


def test_a_state_that_cannot_be_read_points_at_the_audit(anna: Shell, database: Database) -> None:
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("UPDATE streams SET state = '[]' WHERE stream = 'account:1'")
    assert "suanpan audit" in anna.refused("balance", "--user", "anna")


def test_another_secret_than_the_sites_is_refused(anna: Shell) -> None:
    anna._environment["SECRET"] = SECRET[::-1]
    assert "SECRET" in anna.refused("balance", "--user", "anna")
