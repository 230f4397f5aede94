"""A site that lives and is published, and the command that restores it somewhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

from backend.folds import ALL_FOLDS
from backend.grants import GrantAsked, Granted
from backend.identity.service import KeyAsked
from backend.journal.chain import genesis_hash, hash_of
from backend.journal.commands import Landed
from backend.journal.keys_topic import site_record
from backend.kit.kafka import read_topics
from backend.kit.kafka_admin import KEYS_TOPIC, ensure_topics
from backend.kit.kafka_outlet import Outgoing, outgoing_of, outlet
from projections.replay import replay_table
from schemas.catalog import ChannelSettings
from schemas.event import Recorded
from schemas.ids import KeyId, PersonId
from schemas.money import MicroPoints
from scripts.kafka import Broker
from tests.conftest import Database
from tests.given import (
    A_POINT_A_CALL,
    MODEL,
    PER_TOKEN,
    POINT,
    hold_asked,
    holding,
    new_request,
    settle_asked,
    settling,
)
from tests.integration.audited_site import readable
from tests.integration.identity_site import SECRET_TEXT, Process, process_of
from tests.projection_log import History

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a good password"


class Lost(msgspec.Struct):
    """What was known of a site before its database was lost."""

    person: PersonId
    forgotten: PersonId
    key: KeyId
    key_text: str
    granted: Granted
    open_request: str
    events: int
    digest: str


class Command:
    """`suanpan` as an operator types it, on one database and one Kafka."""

    def __init__(self, database: Database, broker: Broker, data_dir: Path) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "SUANPAN_DATA_DIR": str(data_dir),
            "DATABASE_URL": database.app_url,
            "DATABASE_OWNER_URL": database.owner_url,
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
            "SECRET": SECRET_TEXT,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "backend.cli", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def json(self, *arguments: str) -> Any:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        return msgspec.json.decode(out)

    def refused(self, *arguments: str) -> str:
        """The one sentence on stderr of a command that must fail."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=180)
        assert process.returncode == 1, err
        assert out == ""
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("suanpan: ")]
        assert len(lines) == 1, err
        return lines[0]


async def lived(database: Database) -> Lost:
    """Everything a site records: people, a key, a channel, prices, grants, requests."""
    async with process_of(database.app_url) as site:
        anna = (await site.opening.open_person("Anna", PASSWORD, administrator=True)).person
        bert = (await site.opening.open_person("Bert", None)).person
        key = await site.identity.create_key(anna, KeyAsked(name="mine"))
        channel = ChannelSettings("first", "openai", "http://127.0.0.1:9/v1", (MODEL,))
        await site.opening.add_channel(channel, "channel-secret")
        await site.catalog.set_price(MODEL, A_POINT_A_CALL)
        await site.catalog.set_price(MODEL, PER_TOKEN)
        granted = await grant_to(site, anna)
        for _ in range(3):
            request = new_request()
            await do(site, holding(anna, hold_asked(request), UUID(request)))
            await do(site, settling(anna, settle_asked(request)))
        left = new_request()
        await do(site, holding(anna, hold_asked(left), UUID(left)))
    await readable(database.app_url)
    replayed = await replay_table(database.app_url, ALL_FOLDS)
    assert replayed.differences == ()
    return Lost(anna, bert, key.key, key.text, granted, left, replayed.events, replayed.digest)


async def grant_to(site: Process, person: PersonId, points: int = 7) -> Granted:
    asked = GrantAsked(person, MicroPoints(points * POINT), "a welcome")
    return await site.grants.grant(asked, actor="cli", idempotency_key="welcome-1")


async def do(site: Process, command: Any) -> None:
    assert isinstance(await site.writer.submit(command), Landed)


def site_row(url: str) -> tuple[UUID, int, str | None]:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT site_id, epoch, read_only_reason FROM site").fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def count_of(url: str, table: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        ).fetchone()
    assert row is not None
    return row[0]


async def send(broker: Broker, *records: Outgoing) -> None:
    async with outlet(broker.bootstrap, client_id="test") as out:
        await out.send(records, timeout_s=30)


def calls_of(site_id: UUID, events: int) -> list[Recorded]:
    """Accounts and their calls, chained as this site's."""
    heads: dict[str, bytes] = {}
    rows: list[Recorded] = []
    for row in History().calls(max(1, events // 50), events):
        prev = heads.get(row.stream) or genesis_hash(site_id, row.stream)
        chained = msgspec.structs.replace(row, prev_hash=prev)
        chained = msgspec.structs.replace(chained, hash=hash_of(chained))
        heads[row.stream] = chained.hash
        rows.append(chained)
    return rows


async def site_in_kafka(broker: Broker, rows: Sequence[Recorded], site_id: UUID) -> None:
    await ensure_topics(broker.bootstrap, 1)
    await send(broker, site_record(site_id))
    await send(broker, *(outgoing_of(row) for row in rows))


async def keys_in(broker: Broker) -> list[tuple[str, bytes]]:
    return [
        (record.key.decode(), record.value)
        async for batch in read_topics(broker.bootstrap, (KEYS_TOPIC,))
        for record in batch
        if record.key and record.value
    ]
