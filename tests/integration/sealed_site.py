"""A site with two seals and an audited checkpoint between them, and hands that tamper with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from backend.folds import ALL_FOLDS
from backend.journal.chain import genesis_hash, hash_of
from backend.kit.clock import SystemClock, SystemRandomness
from projections.audit.report import AuditReport
from projections.sealing import TableSealer
from schemas.event import Recorded
from schemas.ledger import ReleaseReason
from schemas.registry import decode
from tests.integration.audited_site import (
    audited,
    copy_of,
    event_id_of,
    make_history,
    open_site,
    project,
    readable,
)

ROWS = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log WHERE stream = %(stream)s ORDER BY version
"""
REWRITE = """
UPDATE event_log SET payload = %(payload)s, prev_hash = %(prev_hash)s, hash = %(hash)s
WHERE stream = %(stream)s AND version = %(version)s
"""
STREAM = """
UPDATE streams SET version = %(version)s, hash = %(hash)s, state = %(state)s,
    last_xid = %(xid)s::text::xid8 WHERE stream = %(stream)s
"""
CUT = """
WITH gone AS (DELETE FROM event_log WHERE stream = %(stream)s AND version > %(version)s)
DELETE FROM commands WHERE stream = %(stream)s AND version > %(version)s
"""
DELETE = sql.SQL("DELETE FROM {} WHERE stream = %(stream)s")
RENAME = sql.SQL("UPDATE {} SET stream = %(name)s WHERE stream = %(source)s")
SHARD = "UPDATE event_log SET shard = %(shard)s WHERE stream = %(stream)s"
CONSUMED = """
UPDATE consumer_streams SET version = %(version)s, hash = %(hash)s WHERE stream = %(stream)s
"""
TABLES = (("streams",), ("leases",), ("commands",), ("consumer_streams",), ("event_log",))
READ_TABLES = (
    ("read", "balance"), ("read", "statement"), ("read", "requests"), ("read", "usage"),
)  # fmt: skip


class SealedSite(msgspec.Struct, frozen=True):
    """Seal 1 ends at account:1 12, account:2 8; seal 2 at account:1 16, account:2 9, account:3 4;

    account:1 goes on to 18. The checkpoint belongs to seal 1.
    """

    database: Any
    data_dir: Path

    async def full(self, **more: Any) -> AuditReport:
        return await audited(self.database.app_url, self.data_dir, **more)

    async def since_seal(self) -> AuditReport:
        """Incremental, and it did not read everything after all."""
        report = await self.full(since_seal=True)
        assert report.coverage.kind == "since-seal", report.coverage.fell_back
        return report


async def make_sealed_site(database: Any, data_dir: Path) -> SealedSite:
    url = database.app_url
    sealer = TableSealer(url, data_dir, SystemClock(), SystemRandomness())
    await make_history(url)
    async with open_site(url) as site:
        # An open hold and a swept request lie on both sides of the checkpoint.
        swept = await site.hold(2)
        await site.release(2, swept, ReleaseReason.SWEPT)
    await project(url)
    assert await sealer.seal_now() is not None
    report = await audited(url, data_dir)
    assert report.ok, report.first
    assert report.coverage.checkpoint is not None
    async with open_site(url) as site:
        await site.late(2, swept, await event_id_of(url, "account:2", 10), 0)
        for _ in range(2):
            await site.settle(1, await site.hold(1))
        await site.person(3, 5)
        await site.settle(3, await site.hold(3))
    await readable(url)
    assert await sealer.seal_now() is not None
    async with open_site(url) as site:
        await site.settle(1, await site.hold(1))
    await project(url)
    return SealedSite(database, data_dir)


@contextmanager
def copied(server: Any, site: SealedSite, data_dir: Path) -> Generator[SealedSite]:
    """The same site, to be damaged."""
    shutil.copytree(site.data_dir, data_dir)
    copy = copy_of(server, site.database)
    try:
        yield SealedSite(copy, data_dir)
    finally:
        server.drop(copy)


@contextmanager
def as_superuser(url: str) -> Generator[psycopg.Connection[Any]]:
    """Triggers are off; what is done is committed."""
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def rewrite_from(url: str, stream: str, version: int, change: Callable[[bytes], bytes]) -> None:
    """Changes one payload and makes everything after it fit: hashes, the head, the state."""
    with as_superuser(url) as connection:
        rows = _rows(connection, stream)
        previous = rows[version - 1].prev_hash
        for row in rows[version - 1 :]:
            payload = change(row.payload) if row.version == version else row.payload
            assert row.version != version or payload != row.payload
            previous = _rewritten(
                connection, msgspec.structs.replace(row, payload=payload, prev_hash=previous)
            )
        _settle_stream(connection, stream)


def cut_after(url: str, stream: str, version: int) -> None:
    """Takes the end of a stream away, from every table that knows of it."""
    with as_superuser(url) as connection:
        connection.execute(CUT, {"stream": stream, "version": version})
        _settle_stream(connection, stream)


def drop_stream(url: str, stream: str) -> None:
    """As if it had never been."""
    with as_superuser(url) as connection:
        for table in (*TABLES, *READ_TABLES):
            connection.execute(DELETE.format(sql.Identifier(*table)), {"stream": stream})


def swap_streams(url: str, one: str, other: str) -> None:
    """Each stream gets the other's rows, hashed anew under its own name from the first on."""
    with as_superuser(url) as connection:
        (site_id,) = connection.execute("SELECT site_id FROM site").fetchall()[0]
        rows = {name: _rows(connection, name) for name in (one, other)}
        for source, name in ((one, "account:x"), (other, one), ("account:x", other)):
            for table in (("event_log",), ("commands",), ("leases",)):
                renamed = {"name": name, "source": source}
                connection.execute(RENAME.format(sql.Identifier(*table)), renamed)
        for name, found in ((one, rows[other]), (other, rows[one])):
            shard = rows[name][0].shard
            connection.execute(SHARD, {"stream": name, "shard": shard})
            previous = genesis_hash(site_id, name)
            for row in found:
                made = msgspec.structs.replace(row, stream=name, shard=shard, prev_hash=previous)
                previous = _rewritten(connection, made)
            _settle_stream(connection, name)


def _rows(connection: psycopg.Connection[Any], stream: str) -> list[Recorded]:
    return [Recorded(*row) for row in connection.execute(ROWS, {"stream": stream})]


def _rewritten(connection: psycopg.Connection[Any], row: Recorded) -> bytes:
    """Stores a row with the hash that fits it, and returns that."""
    made = msgspec.structs.replace(row, hash=hash_of(row))
    connection.execute(REWRITE, msgspec.structs.asdict(made))
    return made.hash


def _settle_stream(connection: psycopg.Connection[Any], stream: str) -> None:
    """Makes `streams` say what the log now says, and consumers too."""
    rows = _rows(connection, stream)
    fold, last = ALL_FOLDS.of(stream), rows[-1]
    state = fold.empty
    for row in rows:
        state = fold.apply(state, decode(row), row.version, row.at_us)
    head = {"stream": stream, "version": last.version, "hash": last.hash, "xid": str(last.xid)}
    connection.execute(STREAM, {**head, "state": fold.encode(state)})
    connection.execute(CONSUMED, head)
