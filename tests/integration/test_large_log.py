"""A log of any size (SUANPAN_LARGE_EVENTS): audited, published, restored and computed again.

Prints what each step took; the figures of a million events are in docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
import pytest

from backend.folds import ALL_FOLDS
from backend.journal.chain import event_hash, genesis_hash
from backend.journal.reader import head
from backend.kit.kafka_admin import ensure_topics
from backend.kit.postgres import connect, fetch_all, fetch_one
from projections.replay import published_place
from schemas.event import Recorded
from schemas.ledger import HoldSettled
from schemas.money import format_points
from schemas.prices import PerToken
from schemas.registry import decode, encode
from scripts.kafka import Broker
from tests.conftest import Database, Server
from tests.integration.audited_site import copy_of, readable
from tests.integration.identity_site import SECRET_TEXT, process_of
from tests.integration.log_writing import until
from tests.integration.restore_ground import (
    PASSWORD,
    ROOT,
    Lost,
    count_of,
    grant_to,
    lived,
    site_row,
)
from tests.integration.test_seals_from_kafka import published
from tests.large_log import Made, write_large_log

pytest_plugins = ("tests.integration.kafka_broker",)

EVENTS: Final = int(os.environ.get("SUANPAN_LARGE_EVENTS", "20000"))
DOUBLED: Final = "quick"
"""A model priced by input and output alone: what it costs is easily said in SQL."""
TIMEOUT_S: Final = 3_600

DUE_AT: Final = """
WITH said AS (
    SELECT event_id, type, convert_from(payload, 'UTF8')::jsonb AS it FROM event_log
    WHERE type IN ('HoldSettled', 'UsageLate')
), units AS (
    SELECT coalesce((it->'usage'->>'input')::numeric, 0) AS input,
        coalesce((it->'usage'->>'output')::numeric, 0) AS output,
        coalesce((it->'terms'->>'multiplier_ppm')::numeric, 1000000) AS times,
        (it->>'sweep_event_id')::uuid AS sweep
    FROM said WHERE it->'price'->>'model' = %(model)s AND NOT it ? 'plan'
)
SELECT sum(ceil((input * %(input_npt)s + output * %(output_npt)s) * times / 1000000000))::bigint
FROM units
WHERE sweep IS NULL OR sweep NOT IN (SELECT event_id FROM said WHERE type = 'HoldSettled')
"""
"""Late usage of a request that its sweep settled was accounted for by the sweep."""
A_SETTLEMENT: Final = """
SELECT stream, version FROM event_log
WHERE type = 'HoldSettled' AND (convert_from(payload, 'UTF8')::jsonb->>'amount_upt')::bigint > 1
ORDER BY hash LIMIT 1
"""
ROWS_OF: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log WHERE stream = %(stream)s ORDER BY version
"""
REWRITE: Final = """
UPDATE event_log SET payload = %(payload)s, prev_hash = %(prev)s, hash = %(hash)s
WHERE stream = %(stream)s AND version = %(version)s
"""
RESTATE: Final = "UPDATE streams SET hash = %(hash)s, state = %(state)s WHERE stream = %(stream)s"
WEIGH: Final = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
sys.exit(code)
"""
"""A small process in between: what a child is said to have used begins with its parent's memory."""
UNPUBLISHED: Final = "SELECT count(*) FROM data_keys WHERE NOT published"


class Large(msgspec.Struct):
    """A database with a large log, on which a site then went on living for a moment."""

    database: Database
    made: Made
    lost: Lost


class Ran(msgspec.Struct, frozen=True):
    """A command that has ended."""

    data: Any
    code: int
    seconds: float
    cpu_s: float
    """Of its own process."""
    peak_mb: int

    @property
    def cost(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu_s:.1f} s its own), {self.peak_mb} MB at most"


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[Large]:
    database = server.fresh()

    async def make() -> Large:
        made = await write_large_log(database, SECRET_TEXT, EVENTS)
        await readable(database.app_url)
        return Large(database, made, await lived(database))

    yield asyncio.run(make())
    server.drop(database)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a figure past the capture."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end="")

    return say


def ran(
    database: Database,
    folder: Path,
    *arguments: str,
    bootstrap: str | None = None,
    typed: str = "",
) -> Ran:
    """`suanpan` as an operator types it, timed and weighed."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "SUANPAN_DATA_DIR": str(folder / "data"),
        "DATABASE_URL": database.app_url,
        "DATABASE_OWNER_URL": database.owner_url,
        "SECRET": SECRET_TEXT,
    }
    if bootstrap is not None:
        environment["KAFKA_BOOTSTRAP_SERVERS"] = bootstrap
    begin_s, out, entered = time.perf_counter(), folder / "out", folder / "in"
    entered.write_text(typed)
    weighed = folder / "weighed"
    words = [sys.executable, "-c", WEIGH, str(weighed)]
    words += [sys.executable, "-m", "backend.cli", *arguments, "--json"]
    with out.open("wb") as writing, entered.open("rb") as reading:
        done = subprocess.run(
            words, stdin=reading, stdout=writing, env=environment, timeout=TIMEOUT_S, check=False
        )
    peak_kb, cpu_s = weighed.read_text().split()
    text = out.read_bytes()
    return Ran(
        msgspec.json.decode(text) if text else None,
        done.returncode,
        time.perf_counter() - begin_s,
        float(cpu_s),
        int(peak_kb) // 1024,
    )


def test_a_large_log_is_made_as_appends_would_have_left_it_and_is_sound(
    large: Large, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    made = large.made
    tell(
        f"made: {made.events} events of {made.accounts} accounts in {made.seconds:.1f} s "
        f"({made.cpu_s:.1f} s its own)"
    )
    audit = ran(large.database, tmp_path, "audit")
    tell(f"audit: {large.lost.events} events in {audit.cost}")
    assert [check for check in audit.data["checks"] if not check["ok"]] == []
    assert (audit.code, audit.data["ok"]) == (0, True)
    assert audit.data["events"] == large.lost.events >= EVENTS
    assert audit.data["digest"] == large.lost.digest


async def test_a_large_log_comes_back_from_kafka(
    large: Large,
    empty_database: Database,
    own_broker: Broker,
    tmp_path: Path,
    tell: Callable[[str], None],
) -> None:
    lost, database, bootstrap = large.lost, large.database, own_broker.bootstrap
    begin_s = time.perf_counter()
    await _publish(database, bootstrap)
    tell(f"publish: {lost.events} events in {time.perf_counter() - begin_s:.1f} s")

    restore = ran(empty_database, tmp_path, "restore", "--from", "kafka", bootstrap=bootstrap)
    tell(f"restore: {restore.cost}")
    assert restore.code == 0
    assert restore.data["events"] == lost.events
    assert restore.data["keys_missing"] == 0

    url = empty_database.app_url
    assert site_row(url)[0] == site_row(database.app_url)[0]
    audit = ran(empty_database, tmp_path, "audit", bootstrap=bootstrap)
    tell(f"audit of it, with Kafka and the tables: {audit.cost}")
    assert [check for check in audit.data["checks"] if not check["ok"]] == []
    assert audit.data["digest"] == lost.digest

    checked = ("user", "check", "anna", "--password-stdin")
    assert ran(empty_database, tmp_path, *checked, typed=PASSWORD).data == {"ok": True}
    assert ran(empty_database, tmp_path, *checked, typed="another one").code == 1
    async with process_of(url) as site:
        assert await site.identity.find_key(lost.key_text) == lost.key
        again = await grant_to(site, lost.person)
    assert again == msgspec.structs.replace(lost.granted, repeated=True)
    assert count_of(url, "event_log") == lost.events


def test_recorded_prices_compute_every_settlement_again_and_a_doubled_one_its_own_sum(
    large: Large, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    same = ran(large.database, tmp_path, "reprice", "--prices", "current")
    tell(f"reprice: {same.data['total']['settlements']} settlements in {same.cost}")
    assert (same.code, same.data["anomalies_count"]) == (0, 0)
    assert same.data["total"]["difference"] == "0"
    assert same.data["total"]["settlements"] > EVENTS // 4

    file = tmp_path / "doubled.json"
    file.write_bytes(msgspec.json.encode({"models": {DOUBLED: {"scale": "2"}}}))
    doubled = ran(large.database, tmp_path, "reprice", "--prices", str(file))
    assert doubled.code == 0
    model = doubled.data["models"][DOUBLED]
    due_upt = asyncio.run(_due_when_doubled(large.database.app_url))
    assert model["what_if"] == format_points(due_upt)
    assert doubled.data["total"]["difference"] == model["difference"] != "0"


def test_one_wrong_settlement_with_all_its_hashes_rewritten_is_found(
    large: Large, server: Server, tmp_path: Path
) -> None:
    database = copy_of(server, large.database)
    event_id = asyncio.run(_plant(database))

    reprice = ran(database, tmp_path, "reprice", "--prices", "current")
    assert reprice.code == 1
    assert reprice.data["anomalies_count"] == 1
    (anomaly,) = reprice.data["anomalies"]
    assert anomaly["event_id"] == str(event_id)

    audit = ran(database, tmp_path, "audit")
    wrong = [check["id"] for check in audit.data["checks"] if not check["ok"]]
    assert (audit.code, wrong) == (1, ["I13"])
    server.drop(database)


async def _publish(database: Database, bootstrap: str) -> None:
    """Until Kafka has every row and every data key."""
    await ensure_topics(bootstrap, 1)

    async with (
        published(database, bootstrap),
        await connect(database.app_url, application="test") as connection,
    ):
        newest = await head(connection)

        async def in_step() -> bool:
            row = await fetch_one(connection, UNPUBLISHED)
            return row == (0,) and await published_place(connection) == newest

        await until(in_step, what="Kafka has every row", timeout_s=TIMEOUT_S)


async def _due_when_doubled(url: str) -> int:
    """What the model's usage costs at twice its newest price, added up by the database."""
    async with process_of(url) as site:
        newest = await site.catalog.newest_price(DOUBLED)
    assert newest is not None
    price = newest[1]
    assert isinstance(price, PerToken)
    arguments = {
        "model": DOUBLED,
        "input_npt": 2 * price.input_npt,
        "output_npt": 2 * price.output_npt,
    }
    async with await connect(url, application="test") as connection:
        row = await fetch_one(connection, DUE_AT, arguments)
    assert row is not None
    return row[0]


async def _plant(database: Database) -> UUID:
    """Charges one settlement a micro-point less, and makes all else fit it again."""
    site_id, _, _ = site_row(database.app_url)
    async with await connect(database.app_url, application="test") as connection:
        found = await fetch_one(connection, A_SETTLEMENT)
        assert found is not None
        stream, planted = found
        rows = await fetch_all(connection, ROWS_OF, {"stream": stream})
    fold, prev = ALL_FOLDS.of(stream), genesis_hash(site_id, stream)
    state, event_id = fold.empty, None
    with psycopg.connect(database.superuser_url) as connection:
        connection.execute("SET session_replication_role = replica")
        for row in (Recorded(*values) for values in rows):
            event, payload = decode(row), row.payload
            if row.version == planted:
                assert isinstance(event, HoldSettled)
                event = msgspec.structs.replace(event, amount_upt=event.amount_upt - 1)
                payload, event_id = encode(event), row.event_id
            state = fold.apply(state, event, row.version, row.at_us)
            digest = event_hash(
                prev, stream, row.version, row.event_id, row.command_id, row.topic, row.type,
                row.schema, row.at_us, payload,
            )  # fmt: skip
            names = {"stream": stream, "version": row.version}
            connection.execute(REWRITE, {**names, "payload": payload, "prev": prev, "hash": digest})
            prev = digest
        connection.execute(RESTATE, {"stream": stream, "hash": prev, "state": fold.encode(state)})
    assert event_id is not None
    return event_id
