"""Where a person's data could lie, and what somebody with SECRET could open of it."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from backend.identity.wrapping import WrappedRow, epoch_of, open_row
from backend.journal.keys_topic import EpochRecord, KeyRecord, read_record
from backend.kit.kafka import Record, read_topics
from backend.kit.kafka_admin import KEYS_TOPIC, OUR_TOPICS
from backend.kit.secrets import DataKey, SealBroken, SiteSecret, aad_of
from schemas.identity import PersonRegistered, ReasonGiven
from schemas.registry import decode
from tests.conftest import Database
from tests.integration.log_writing import rows_of

LIST_TABLES = """
SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'read', 'rebuild')
"""
LIST_WAL = """
SELECT name, pg_walfile_name(pg_current_wal_lsn()) FROM pg_ls_waldir()
WHERE name ~ '^[0-9A-F]{24}$' ORDER BY name
"""
READ_WAL = "SELECT pg_read_binary_file('pg_wal/' || %s)"


def forms_of(text: str) -> list[bytes]:
    """A text as UTF-8, folded, in hex, in base64 at each alignment, and as JSON escapes it."""
    raw = text.encode()
    return [
        raw,
        text.casefold().encode(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        # Without the characters that depend on what stands before and after.
        *(base64.b64encode(b"_" * shift + raw)[4:-4] for shift in range(3)),
        text.encode("unicode_escape"),
        text.encode("utf-16-le"),
    ]


class WalMark(msgspec.Struct, frozen=True):
    """Where PostgreSQL's log stood: its files before that hold nothing that came later."""

    current: str
    names: frozenset[str]


def wal_mark(database: Database) -> WalMark:
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        files = connection.execute(LIST_WAL).fetchall()
    return WalMark(files[0][1], frozenset(name for name, _ in files))


async def everywhere(
    database: Database, bootstrap: str, folder: Path, since: WalMark
) -> list[tuple[str, bytes]]:
    """(place, its bytes) of all that is stored: tables, WAL, Kafka's records, and files."""
    found = [*_tables(database), *_wal(database, since), *_files(folder)]
    topics = tuple(spec.name for spec in OUR_TOPICS)
    for record in await records_of(bootstrap, *topics):
        headers = b"".join(name.encode() + value for name, value in record.headers)
        content = (record.key or b"") + (record.value or b"") + headers
        found.append((f"kafka {record.topic}", content))
    return found


async def records_of(bootstrap: str, *topics: str) -> list[Record]:
    async with aclosing(read_topics(bootstrap, topics)) as batches:
        return [record async for batch in batches for record in batch]


def places_with(found: Iterable[tuple[str, bytes]], text: str) -> set[str]:
    """Kinds of places (`table`, `wal`, `kafka`, `file`, `log`) that hold a text in any form."""
    forms = forms_of(text)
    return {place.split()[0] for place, content in found if any(form in content for form in forms)}


class Wrapped(msgspec.Struct, frozen=True):
    """Wrapped keys and the epochs at hand to open them, from wherever they were kept."""

    keys: tuple[KeyRecord, ...]
    epochs: tuple[EpochRecord, ...]

    def with_keys(self, more: Wrapped) -> Wrapped:
        """Our epochs, and somebody's old copies of keys too."""
        return Wrapped((*self.keys, *more.keys), self.epochs)


def in_the_table(database: Database) -> Wrapped:
    with psycopg.connect(database.app_url) as connection:
        keys = connection.execute("SELECT account, key_epoch, wrapped FROM data_keys").fetchall()
        epochs = connection.execute("SELECT epoch, wrapped FROM key_epochs").fetchall()
    return Wrapped(
        tuple(KeyRecord(*row) for row in keys), tuple(EpochRecord(*row) for row in epochs)
    )


async def in_the_topic(bootstrap: str, *, compacted: bool = True) -> Wrapped:
    """What the keys' topic holds, or will once it is compacted: the last record of each key."""
    every = await records_of(bootstrap, KEYS_TOPIC)
    last = {(record.partition, record.key): record for record in every}
    kept = [read_record(record) for record in (last.values() if compacted else every)]
    return Wrapped(
        tuple(one for one in kept if isinstance(one, KeyRecord) and one.wrapped is not None),
        tuple(one for one in kept if isinstance(one, EpochRecord) and one.wrapped is not None),
    )


async def readable(database: Database, secret: SiteSecret, wrapped: Wrapped) -> set[str]:
    """Every personal text in the log that opens with SECRET and these keys."""
    sealers = [secret, *_data_keys(secret, wrapped)]
    texts: set[str] = set()
    for row in await rows_of(database.app_url):
        match decode(row):
            case PersonRegistered(name_sealed=sealed) | ReasonGiven(reason_sealed=sealed):
                pass
            case _:
                continue
        for sealer in sealers:
            with contextlib.suppress(SealBroken):
                texts.add(sealer.open(sealed, aad_of(row.stream, row.version)).decode())
    return texts


def _data_keys(secret: SiteSecret, wrapped: Wrapped) -> list[DataKey]:
    opened: list[DataKey] = []
    for key in wrapped.keys:
        assert key.wrapped is not None
        named = epoch_of(key.wrapped)
        for epoch_wrapped in (None, *(epoch.wrapped for epoch in wrapped.epochs)):
            row = WrappedRow(key.account, key.key_epoch, key.wrapped, named, epoch_wrapped)
            with contextlib.suppress(SealBroken):
                opened.append(open_row(secret, row))
    return opened


def _tables(database: Database) -> Iterator[tuple[str, bytes]]:
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        tables = connection.execute(LIST_TABLES).fetchall()
        for schema, table in tables:
            name = sql.Identifier(schema, table)
            text = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(name)
            with connection.cursor().copy(text) as rows:
                yield f"table {schema}.{table}", b"".join(bytes(row) for row in rows)
            with connection.cursor(binary=True) as cursor:
                for row in cursor.execute(sql.SQL("SELECT * FROM {}").format(name)):
                    values = (value for value in row if isinstance(value, bytes))
                    yield f"table {schema}.{table}", b"\n".join(values)
        yield from _server_logs(connection)


def _wal(database: Database, since: WalMark) -> Iterator[tuple[str, bytes]]:
    """What was written since; a file that was used again has a new name and may hold old bytes."""
    with (
        psycopg.connect(database.superuser_url, autocommit=True) as connection,
        connection.cursor(binary=True) as cursor,
    ):
        for name, current in cursor.execute(LIST_WAL).fetchall():
            if name in since.names and not since.current <= name <= current:
                continue
            row = cursor.execute(READ_WAL, (name,)).fetchone()
            assert row is not None
            yield f"wal {name}", bytes(row[0])


def _server_logs(connection: psycopg.Connection[Any]) -> Iterator[tuple[str, bytes]]:
    """PostgreSQL's own log, where the server's folder is one we may look into."""
    row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    path = Path(row[0]).parent.parent / "logs" / "postgres.log"
    if path.exists():
        yield f"log {path}", path.read_bytes()


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"file {path}", path.read_bytes()
