"""A forgotten person's name and the reasons of their grants are searched for wherever data lies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psycopg
import pytest
import pytest_asyncio

from backend.journal.keys_topic import site_records
from backend.journal.publisher_place import find_lag
from backend.kit.kafka_admin import KEYS_TOPIC, connected
from backend.kit.kafka_outlet import outlet
from backend.kit.kafka_wire import SetTopicConfigsRequest
from backend.kit.postgres import connect
from backend.kit.secrets import SiteSecret
from backend.ledger.record_filters import StatementFilter
from backend.ledger.statements import list_statement
from schemas.ids import PersonId, account_stream
from scripts.kafka import Broker
from tests.conftest import Database, Server
from tests.integration.identity_site import SECRET_TEXT
from tests.integration.log_writing import until
from tests.security.forgetting_ground import (
    Wrapped,
    everywhere,
    in_the_table,
    in_the_topic,
    places_with,
    readable,
    wal_mark,
)
from tests.site import ROOT, RoleProcess, bearer, role_process

pytest_plugins = ("tests.integration.kafka_broker",)

SECRET = SiteSecret(SECRET_TEXT)
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Texts(msgspec.Struct, frozen=True):
    """What is private of two people: one who will be forgotten, and one who stands by."""

    name: str
    reason: str
    other_name: str
    other_reason: str

    @property
    def forgotten(self) -> set[str]:
        return {self.name, self.reason}

    @property
    def others(self) -> set[str]:
        return {self.other_name, self.other_reason}


def texts_of(mark: str) -> Texts:
    return Texts(
        f"Clémentine Kanari {mark}",
        f"because the canary bird {mark} sings",
        f"Bystander {mark}b",
        f"for standing by {mark}",
    )


CLEAR = "label-that-lies-in-clear-93"
EVERYWHERE = {"table", "wal", "kafka", "file"}
PASSWORD = "password of 4e2b the canary"
ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
COMPACT_NOW = {
    "segment.ms": "100",
    "max.compaction.lag.ms": "100",
    "min.cleanable.dirty.ratio": "0.0",
    "delete.retention.ms": "0",
}


class Site:
    """`suanpan serve` with Kafka, and the command line beside it."""

    def __init__(
        self, process: RoleProcess, database: Database, broker: Broker, folder: Path
    ) -> None:
        self.database = database
        self.broker = broker
        self.folder = folder
        self.url = process.url
        self.wal = wal_mark(database)

    async def command(self, *arguments: str, stdin: str = "") -> Any:
        def run() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [sys.executable, "-m", "backend.cli", *arguments, "--json"],
                input=stdin.encode(),
                capture_output=True,
                timeout=120,
                check=False,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(ROOT),
                    "SUANPAN_DATA_DIR": str(self.folder / "data"),
                    "SECRET": SECRET_TEXT,
                    "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap,
                },
            )

        done = await asyncio.to_thread(run)
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    async def person(self, name: str, reason: str) -> tuple[PersonId, str]:
        """Registered, granted points and given a key."""
        made = await self.command("user", "create", name, "--password-stdin", stdin=f"{PASSWORD}\n")
        _, key = await asyncio.gather(
            self.command("grant", "--user", name, "--points", "5", "--reason", reason),
            self.command("key", "create", "--user", name, "--name", CLEAR),
        )
        return made["id"], key["key"]

    async def people(self, texts: Texts) -> tuple[PersonId, str]:
        """Both; gives the one who will be forgotten, and their key."""
        one, _ = await asyncio.gather(
            self.person(texts.name, texts.reason), self.person(texts.other_name, texts.other_reason)
        )
        await self.published()
        return one

    async def ask(self, key: str) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{self.url}/v1/chat/completions", json=ASKED, headers=bearer(key)
            ) as answer,
        ):
            await answer.read()
            return answer.status

    async def published(self) -> None:
        """Kafka has every row and every key."""

        async def is_published() -> bool:
            async with await connect(self.database.app_url, application="test") as connection:
                if (await find_lag(connection)).rows:
                    return False
            return not _unpublished(self.database)

        await until(is_published, timeout_s=30, what="Kafka has everything")

    async def everywhere(self) -> list[tuple[str, bytes]]:
        return await everywhere(self.database, self.broker.bootstrap, self.folder, self.wal)

    async def kept(self) -> Wrapped:
        """What the table and the compacted topic hold."""
        table, topic = in_the_table(self.database), await in_the_topic(self.broker.bootstrap)
        return Wrapped((*table.keys, *topic.keys), (*table.epochs, *topic.epochs))


def _unpublished(database: Database) -> int:
    query = """
    SELECT (SELECT count(*) FROM data_keys WHERE NOT published)
        + (SELECT count(*) FROM key_epochs WHERE NOT published)
        + (SELECT count(*) FROM key_tombstones WHERE NOT published)
    """
    with psycopg.connect(database.app_url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Site]:
    """The broker's files lie in the same folder as the site's."""
    folder, database = tmp_path_factory.mktemp("site"), server.fresh()
    broker = Broker(kafka_jars, folder / "kafka", more={"log.cleaner.backoff.ms": "300"})
    broker.start()
    try:
        async with role_process(
            "serve", database, folder, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap
        ) as process:
            yield Site(process, database, broker, folder)
    finally:
        broker.stop()
        server.drop(database)


async def test_a_forgotten_person_cannot_be_found_anywhere_and_the_books_still_verify(
    site: Site,
) -> None:
    texts = texts_of("7f3a91")
    canaries = (*texts.forgotten, PASSWORD)
    person, key = await site.people(texts)
    assert await site.ask(key) == 200
    await site.published()

    found = await site.everywhere()
    assert places_with(found, CLEAR) == EVERYWHERE, "the search does not find what is there"
    assert [places_with(found, canary) for canary in canaries] == [set()] * 3
    before = await readable(site.database, SECRET, await site.kept())
    assert before >= texts.forgotten | texts.others

    await site.command("user", "delete", texts.name, "--yes")

    deadline_s, answered = time.monotonic() + 1.0, 1
    while await site.ask(key) != 401:
        answered += 1
        assert time.monotonic() < deadline_s, "an old key still works"
    await site.published()
    now = await readable(site.database, SECRET, await site.kept())
    assert not now & texts.forgotten
    assert now >= texts.others

    assert (await site.command("audit"))["ok"]
    new, _ = await site.person(texts.name, texts.other_reason)
    assert new != person
    movements = await _movements(site, person, answered + 1)
    assert [kind for kind, _ in movements] == ["settle"] * answered + ["grant"]
    assert movements[-1][1] == 5_000_000
    assert all(amount_upt < 0 for _, amount_upt in movements[:-1])
    found = await site.everywhere()
    assert [places_with(found, canary) for canary in canaries] == [set()] * 3


async def test_old_copies_of_a_forgotten_key_open_no_more_after_a_rewrap(site: Site) -> None:
    texts = texts_of("1c22e4")
    await site.people(texts)
    old = in_the_table(site.database)

    await site.command("user", "delete", texts.name, "--yes")
    await site.published()
    copied = (await site.kept()).with_keys(old)
    # Until the re-wrap an old copy of the key is enough: this is what the re-wrap is for.
    assert await readable(site.database, SECRET, copied) >= texts.forgotten

    assert (await site.command("keys", "rewrap"))["epochs_destroyed"] >= 1
    await site.published()
    copied = (await site.kept()).with_keys(old)
    now = await readable(site.database, SECRET, copied)
    assert not now & texts.forgotten
    assert now >= texts.others
    # A whole old dump holds the epoch too, and SECRET opens it (docs/adr/0012-forgetting.md).
    assert await readable(site.database, SECRET, old) >= texts.forgotten
    assert (await site.command("audit"))["ok"]


async def test_superseded_keys_leave_kafkas_disk(site: Site) -> None:
    texts = texts_of("9be015")
    await site.people(texts)
    old = in_the_table(site.database)
    gone = [one.wrapped for one in (*old.keys, *old.epochs) if one.wrapped is not None]
    kafka = site.folder / "kafka" / "log"
    assert all(_on_disk(kafka, wrapped) for wrapped in gone)

    await site.command("user", "delete", texts.name, "--yes")
    await site.command("keys", "rewrap")
    await site.published()
    async with connected(site.broker.bootstrap, 10.0) as client:
        request = SetTopicConfigsRequest(KEYS_TOPIC, COMPACT_NOW)
        await client.send(client.get_random_node(), request)

    async def is_compacted() -> bool:
        # What the publisher does twice a day: a partition is compacted up to its newest segment.
        async with outlet(site.broker.bootstrap, client_id="test") as out:
            await out.send(site_records(_site_id(site.database)), timeout_s=10.0)
        return not any(_on_disk(kafka, wrapped) for wrapped in gone)

    await until(is_compacted, timeout_s=90, what="Kafka compacted the keys' topic")
    raw = await in_the_topic(site.broker.bootstrap, compacted=False)
    now = await readable(site.database, SECRET, raw)
    assert not now & texts.forgotten
    assert now >= texts.others


async def _movements(site: Site, person: PersonId, count: int) -> list[tuple[str, int]]:
    """Newest first, once the projection has so many."""
    found: list[tuple[str, int]] = []
    mine = StatementFilter(account=account_stream(person))

    async def has_all() -> bool:
        async with await connect(site.database.app_url, application="test") as connection:
            entries = await list_statement(connection, mine, 100)
        found[:] = [(entry.kind, entry.amount_upt) for entry in entries]
        return len(found) >= count

    await until(has_all, what="the statement is current")
    return found


def _site_id(database: Database) -> Any:
    with psycopg.connect(database.app_url) as connection:
        row = connection.execute("SELECT site_id FROM site").fetchone()
    assert row is not None
    return row[0]


def _on_disk(folder: Path, content: bytes) -> bool:
    for path in folder.rglob("*"):
        # Files come and go while Kafka compacts; what was renamed is seen at the next look.
        try:
            if path.is_file() and content in path.read_bytes():
                return True
        except FileNotFoundError:
            continue
    return False
