"""`suanpan seal` and `suanpan audit --since-seal` as an operator types them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backend.journal.seal import decode_seal
from scripts.kafka import Broker
from tests.conftest import Database
from tests.integration.audited_site import make_history, tamper
from tests.integration.test_cli_commands import Shell
from tests.integration.test_seals_from_kafka import filled, witness_on, witnessed

pytest_plugins = ("tests.integration.kafka_broker",)


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path / "data")


def test_a_seal_is_made_once_for_what_is_new(shell: Shell, database: Database) -> None:
    assert "nothing to seal yet" in shell.refused("seal")
    asyncio.run(make_history(database.app_url))
    made = shell.json("seal")
    assert (made["seal"], made["events"], made["made"], made["by"]) == (1, 28, True, "site")
    stored = decode_seal((shell.data_dir / "seals" / "000000000001.json").read_bytes())
    assert made["root"] == stored.root.hex()
    assert made["position"] == {
        "epoch": stored.position.epoch, "xid": stored.position.xid, "seq": stored.position.seq,
    }  # fmt: skip
    again = shell.json("seal")
    assert (again["seal"], again["root"], again["made"]) == (1, made["root"], False)


def test_a_log_that_is_not_what_was_sealed_is_not_sealed(shell: Shell, database: Database) -> None:
    asyncio.run(make_history(database.app_url))
    shell.json("seal")
    tamper(
        database.superuser_url,
        "DELETE FROM event_log WHERE stream = 'account:1' AND version > 11",
    )
    (shell.data_dir / "seals" / "heads.json").unlink()
    assert "See `suanpan audit`" in shell.refused("seal")


def test_an_audit_since_the_seal_says_what_it_covers(shell: Shell, database: Database) -> None:
    asyncio.run(make_history(database.app_url))
    first = shell("audit")
    assert first.returncode == 0
    assert "No checkpoint was kept" in first.stdout
    shell.json("seal")
    words = shell("audit").stdout
    assert "28 events in 9 streams" in words
    assert "All of them were read and hashed" in words
    assert "is kept for --since-seal" in words
    report = shell.json("audit", "--since-seal")
    assert report["ok"]
    coverage = report["coverage"]
    assert (coverage["kind"], coverage["seal"], coverage["events_read"]) == ("since-seal", 1, 0)
    words = shell("audit", "--since-seal").stdout
    assert "0 of them, behind seal 1" in words
    assert "only a full audit hashes them again" in words


def test_a_damaged_checkpoint_is_said_on_stderr(shell: Shell, database: Database) -> None:
    asyncio.run(make_history(database.app_url))
    shell.json("seal")
    shell.json("audit")
    (shell.data_dir / "audit" / "checkpoint").write_bytes(b"x")
    done = shell("audit", "--since-seal", "--json")
    assert done.returncode == 0
    assert "the checkpoint is damaged" in done.stderr
    assert '"kind":"full"' in done.stdout


def test_with_kafka_the_witness_seals(
    database: Database, own_broker: Broker, tmp_path: Path
) -> None:
    shell = Shell(database, tmp_path / "data", KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap)

    async def publish() -> None:
        await make_history(database.app_url)
        await filled(database, own_broker.bootstrap)

    asyncio.run(publish())
    assert "the witness seals, and it has made no seal yet" in shell.refused("seal")
    asyncio.run(witnessed(witness_on(own_broker, tmp_path / "witness"), 1, 28))
    newest = shell.json("seal")
    assert (newest["made"], newest["by"], newest["events"]) == (False, "witness", 28)
    assert not (tmp_path / "data" / "seals").exists()
