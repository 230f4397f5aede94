"""A superuser with triggers off changes something: the audit names where it is wrong first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from backend.folds import ALL_FOLDS
from projections.replay import replay_table
from tests.integration.audited_site import audited, copy_of, make_history, project, tamper


@pytest.fixture(scope="module")
def written(server: Any) -> Iterator[Any]:
    """A database with a history and its read models; each test gets a copy of it."""

    async def write(url: str) -> None:
        await make_history(url)
        await project(url)

    database = server.fresh()
    asyncio.run(write(database.app_url))
    yield database
    server.drop(database)


@pytest.fixture
def history(server: Any, written: Any) -> Iterator[Any]:
    copy = copy_of(server, written)
    yield copy
    server.drop(copy)


ROW = "stream = 'account:1' AND version = 4"
LAST = "stream = 'account:1' AND version = 12"
FLIPPED = "set_byte({0}, 0, 255 - get_byte({0}, 0))"

CHANGED_COLUMNS = {
    "event_id": "gen_random_uuid()",
    "command_id": "gen_random_uuid()",
    "topic": "'suanpan.catalog'",
    "shard": "(shard + 1) % 16",
    "stream": "'account:2'",
    "stream to another kind": "'price:model'",
    "stream to an unknown kind": "'nothing:1'",
    "stream to a new one": "'account:77'",
    "version": "version + 100",
    "version to the one before": "version - 1",
    "version to the next one": "version + 1",
    "type": "'HoldReleased'",
    "schema": "schema + 1",
    "at": "at + interval '1 microsecond'",
    "payload by one space": "payload || ' '::bytea",
    "payload by one byte": FLIPPED.format("payload"),
    "prev_hash": FLIPPED.format("prev_hash"),
    "hash": FLIPPED.format("hash"),
}


@pytest.mark.parametrize("version", [1, 4, 12])
@pytest.mark.parametrize("what", CHANGED_COLUMNS)
async def test_a_changed_column_is_named(history: Any, what: str, version: int) -> None:
    column = what.split()[0]
    value = CHANGED_COLUMNS[what]
    tamper(
        history.superuser_url,
        f"UPDATE event_log SET {column} = {value} "
        f"WHERE stream = 'account:1' AND version = {version}",
    )
    await _names(history, "account:1", version)


ORDER = {
    "a row deleted": ([f"DELETE FROM event_log WHERE {ROW}"], "account:1", 4),
    "the first row of a stream deleted": (
        ["DELETE FROM event_log WHERE stream = 'account:1' AND version = 1"], "account:1", 1,
    ),
    "the last row cut": ([f"DELETE FROM event_log WHERE {LAST}"], "account:1", 12),
    "the last three rows cut": (
        ["DELETE FROM event_log WHERE stream = 'account:1' AND version > 9"], "account:1", 10,
    ),
    "a whole stream deleted": (
        ["DELETE FROM event_log WHERE stream = 'account:1'"], "account:1", 1,
    ),
    "two rows swapped by version": (
        [("UPDATE event_log SET version = CASE version WHEN 4 THEN 7 ELSE 4 END "
         "WHERE stream = 'account:1' AND version IN (4, 7)")], "account:1", 4,
    ),
    "two rows swapped by payload": (
        [("UPDATE event_log a SET payload = b.payload FROM event_log b "
         "WHERE a.stream = 'account:1' "
         "AND b.stream = a.stream AND a.version IN (4, 6) AND b.version = 10 - a.version")],
        "account:1", 4,
    ),
    "two rows swapped by place": (
        [("UPDATE event_log a SET xid = b.xid FROM event_log b WHERE a.stream = 'account:1' "
         "AND b.stream = a.stream AND a.version IN (4, 6) AND b.version = 10 - a.version")],
        "account:1", 4,
    ),
    "rows of two streams swapped by name": (
        [("UPDATE event_log SET stream = CASE stream WHEN 'account:1' THEN 'account:2' "
         "ELSE 'account:1' END WHERE stream IN ('account:1', 'account:2') AND version = 4")],
        "account:1", 4,
    ),
    "a row moved to the end": (
        [(f"UPDATE event_log SET xid = (SELECT max(xid::text::bigint) FROM event_log)::text::xid8 "
         f"WHERE {ROW}")], "account:1", 4,
    ),
    "a row moved beyond what readers see": (
        [f"UPDATE event_log SET xid = '9000000000' WHERE {ROW}"], "account:1", 4,
    ),
    "the last row moved beyond what readers see": (
        [f"UPDATE event_log SET xid = '9000000000' WHERE {LAST}"], "account:1", 12,
    ),
    "a row before all others": ([f"UPDATE event_log SET epoch = 0 WHERE {ROW}"], "account:1", 1),
    "the last row in a later epoch": (
        [f"UPDATE event_log SET epoch = 7 WHERE {LAST}"], "account:1", 12,
    ),
}  # fmt: skip
COPY = (
    "INSERT INTO event_log (epoch, xid, seq, event_id, command_id, topic, shard, stream, version, "
    "type, schema, at, payload, prev_hash, hash) OVERRIDING SYSTEM VALUE "
    "SELECT epoch, xid, {seq}, event_id, command_id, topic, shard, stream, {version}, type, "
    "schema, at, {payload}, prev_hash, hash FROM event_log WHERE "
)
INSERTED = {
    "an exact copy": (COPY.format(seq="seq", version="version", payload="payload") + ROW, 4),
    "a copy at the end": (
        COPY.format(seq="seq + 100000", version="version", payload="payload") + ROW, 4,
    ),
    "a changed copy before it": (
        COPY.format(seq="seq - 1", version="version", payload="'{}'::bytea") + ROW, 4,
    ),
    "a forged next row": (
        COPY.format(seq="seq + 1", version="version + 1", payload="'{}'::bytea") + LAST, 13,
    ),
    "a copy under the next version": (
        COPY.format(seq="seq + 1", version="version + 1", payload="payload") + LAST, 13,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ORDER)
async def test_a_broken_order_is_named(history: Any, what: str) -> None:
    statements, stream, version = ORDER[what]
    tamper(history.superuser_url, *statements)
    await _names(history, stream, version)


@pytest.mark.parametrize("what", INSERTED)
async def test_an_inserted_row_is_named(history: Any, what: str) -> None:
    statement, version = INSERTED[what]
    tamper(history.superuser_url, statement)
    await _names(history, "account:1", version)


STREAMS = {
    "version raised": "UPDATE streams SET version = version + 1 WHERE stream = 'account:1'",
    "version lowered": "UPDATE streams SET version = version - 1 WHERE stream = 'account:1'",
    "hash": f"UPDATE streams SET hash = {FLIPPED.format('hash')} WHERE stream = 'account:1'",
    "last_xid": "UPDATE streams SET last_xid = '3' WHERE stream = 'account:1'",
    "state": "UPDATE streams SET state = replace(convert_from(state, 'UTF8'), 'issued_upt\":1', "
             "'issued_upt\":2')::bytea WHERE stream = 'account:1'",
    "state emptied": "UPDATE streams SET state = '{}' WHERE stream = 'account:1'",
    "a row deleted": "DELETE FROM streams WHERE stream = 'account:1'",
    "name": "UPDATE streams SET stream = 'account:100' WHERE stream = 'account:1'",
}  # fmt: skip
SWAP = (
    "UPDATE streams SET stream = 'account:x' WHERE stream = 'account:1'",
    "UPDATE streams SET stream = 'account:1' WHERE stream = 'account:2'",
    "UPDATE streams SET stream = 'account:2' WHERE stream = 'account:x'",
)


@pytest.mark.parametrize("what", STREAMS)
async def test_a_changed_stream_is_named(history: Any, what: str) -> None:
    tamper(history.superuser_url, STREAMS[what])
    await _names(history, "account:1", 12)


async def test_two_streams_swapped_are_named(history: Any) -> None:
    tamper(history.superuser_url, *SWAP)
    await _names(history, "account:1", 12)


async def test_states_of_two_streams_swapped_are_named(history: Any) -> None:
    tamper(
        history.superuser_url,
        "UPDATE streams a SET state = b.state FROM streams b WHERE a.stream LIKE 'account:%' "
        "AND b.stream LIKE 'account:%' AND a.stream <> b.stream",
    )
    await _names(history, "account:1", 12)


BESIDE = {
    "a command forgotten": (
        "DELETE FROM commands WHERE stream = 'account:1' AND version = 4", "I6", "account:1", 4,
    ),
    "a command that nothing recorded": (
        "INSERT INTO commands VALUES (gen_random_uuid(), '', 'account:1', 4)", "I6", "account:1", 4,
    ),
    "a lease lost": ("DELETE FROM leases", "I12", "account:2", 8),
    "a lease for nothing": (
        ("INSERT INTO leases (request_id, stream, until) VALUES (gen_random_uuid(), 'account:1', "
        "now())"), "I12", "account:1", 12,
    ),
    "a lease on no stream": (
        ("INSERT INTO leases (request_id, stream, until) VALUES (gen_random_uuid(), 'account:9', "
        "now())"), "I12", "account:9", 1,
    ),
    "a consumer with another history": (
        ("UPDATE consumer_streams SET hash = sha256('x') WHERE stream = 'account:1' "
        "AND consumer = 'balance'"), "I11", "account:1", 12,
    ),
    "a balance": (
        "UPDATE read.balance SET posted_upt = posted_upt + 1 WHERE stream = 'account:1'",
        "I9", "account:1", 12,
    ),
    "a statement's line": (
        ("UPDATE read.statement SET amount_upt = amount_upt - 1 WHERE stream = 'account:1' "
        "AND version = 4"), "I9", "account:1", 4,
    ),
    "a statement's line lost": (
        "DELETE FROM read.statement WHERE stream = 'account:1' AND version = 4", "I9",
        "account:1", 4,
    ),
    "a request": (
        "UPDATE read.requests SET output_tokens = 1 WHERE stream = 'account:1' AND version = 4",
        "I9", "account:1", 4,
    ),
    "usage": (
        "UPDATE read.usage SET charged_upt = charged_upt + 1 WHERE stream = 'account:1'", "I9",
        "account:1", 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
async def test_a_table_beside_the_log_that_says_something_else_is_named(
    history: Any, what: str
) -> None:
    statement, check, stream, version = BESIDE[what]
    tamper(history.superuser_url, statement)
    report = await audited(history.app_url)
    failed = [found for found in report.checks if not found.ok]
    assert [found.id for found in failed] == [check]
    assert failed[0].first is not None
    assert (failed[0].first.stream, failed[0].first.version) == (stream, version)


async def _names(history: Any, stream: str, version: int) -> None:
    report = await audited(history.app_url, page_rows=7)
    assert not report.ok
    assert report.first is not None
    assert (report.first.stream, report.first.version) == (stream, version), report.first
    replayed = await replay_table(history.app_url, ALL_FOLDS)
    assert replayed.differences
    first = replayed.differences[0]
    assert (first.stream, first.version) == (stream, version), first
