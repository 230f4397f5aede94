"""I9: every row of the read models is what its account's events say, as far as each has come.

The events are folded once more, by the projections' own pure functions, account by account.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, LiteralString, Protocol

import msgspec

from backend.journal.consumer import Arrived
from backend.journal.reader import read_stream
from backend.kit.postgres import Connection, fetch_all, fetch_one
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.code import CODE
from projections.accounts import AccountStates
from projections.audit.report import READ_MODELS, Findings
from projections.balance.projection import NAME as BALANCE
from projections.balance.rows import row_of as balance_row
from projections.codes.projection import HANDLERS as CODE_HANDLERS
from projections.codes.projection import NAME as CODES
from projections.codes.rows import CodeRows
from projections.replay import Progress
from projections.requests.projection import HANDLERS as REQUEST_HANDLERS
from projections.requests.projection import NAME as REQUESTS
from projections.requests.rows import RequestRows
from projections.statement.projection import NAME as STATEMENT
from projections.statement.projection import StatementStates, lines_of
from projections.statement.rows import StatementRow
from projections.usage.projection import HANDLERS as USAGE_HANDLERS
from projections.usage.projection import NAME as USAGE
from projections.usage.rows import UsageRows
from projections.verifying import Line
from schemas.event import Recorded
from schemas.ids import kind_of
from schemas.registry import decode

HAS_TABLE: Final = "SELECT to_regclass('read.' || %(table)s::text) IS NOT NULL"
APPLIED: Final = """
SELECT consumer, stream, version FROM consumer_streams
WHERE consumer = ANY(%(consumers)s) AND stream = ANY(%(streams)s)
"""
EVENTS: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log WHERE stream = ANY(%(streams)s) ORDER BY stream, version
"""
BALANCE_ROWS: Final = """
SELECT stream, version, person, issued_upt, charged_upt, posted_upt, held_upt, available_upt,
    shortfall_upt, open_holds, encode(hash, 'hex'), at_us, state, plan_level::integer,
    plan_until_us, plan_used
FROM read.balance WHERE stream = ANY(%(streams)s)
"""
STATEMENT_ROWS: Final = """
SELECT stream, version, kind, amount_upt, balance_upt, at_us, event_id, command_id,
    shard::integer, swept, request_id::text, model, price_model, price_version, basis, grant_kind,
    actor, explains_event_id, key, channel, source, gift_type, plan_level, plan_version,
    plan_months, credit_upt
FROM read.statement WHERE stream = ANY(%(streams)s)
"""
REQUEST_ROWS: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version,
    group_name, multiplier_ppm, plan_level, plan_version, plan_item, cache_write_1h_tokens, images,
    seconds, characters, searches
FROM read.requests WHERE stream = ANY(%(streams)s)
"""
USAGE_ROWS: Final = """
SELECT stream, hour, model, channel, key, requests, errors, refused, input_tokens,
    cached_tokens, output_tokens, charged_upt, duration_ms, plan_requests, cache_write_tokens
FROM read.usage WHERE stream = ANY(%(streams)s)
"""
CODE_ROWS: Final = """
SELECT stream, batch, kind, type, hint, amount_upt, actor, issued_us, expires_us, person,
    redeemed_us, voided_us, voided_by, version
FROM read.codes WHERE stream = ANY(%(streams)s)
"""
GROUP_EVENTS: Final = 2_000
GROUP_ACCOUNTS: Final = 200

Values = tuple[Any, ...]
Rows = dict[Values, Values]
"""Key → row."""


class Model(Protocol):
    """One read model, folded for some accounts."""

    def take(self, arrived: Arrived) -> None: ...

    def rows(self) -> Iterable[Values]:
        """As the table's query gives them."""
        ...


class _Balance:
    def __init__(self) -> None:
        self._states = AccountStates(())
        self._last: dict[str, Arrived] = {}

    def take(self, arrived: Arrived) -> None:
        self._states.fold(arrived)
        self._last[arrived.row.stream] = arrived

    def rows(self) -> Iterator[Values]:
        for stream, last in self._last.items():
            yield balance_values(self._states.of(stream), last)


def balance_values(account: Account, last: Arrived) -> Values:
    """The row of an account whose last event is `last`, as BALANCE_ROWS gives it."""
    row = balance_row(account, last)
    return (
        row.stream, row.version, row.person, row.issued_upt, row.charged_upt, row.posted_upt,
        row.held_upt, row.available_upt, row.shortfall_upt, row.open_holds, row.hash,
        row.at_us, bytes(row.state).decode(), row.plan_level, row.plan_until_us, row.plan_used,
    )  # fmt: skip


class _Statement:
    def __init__(self) -> None:
        self._states = StatementStates()
        self._lines: list[StatementRow] = []

    def take(self, arrived: Arrived) -> None:
        self._lines.extend(lines_of(self._states, [arrived]))

    def rows(self) -> Iterator[Values]:
        return (msgspec.structs.astuple(line) for line in self._lines)


class _Requests:
    def __init__(self) -> None:
        self._rows = RequestRows({})

    def take(self, arrived: Arrived) -> None:
        handler = REQUEST_HANDLERS.get(type(arrived.event))
        if handler is not None:
            handler(self._rows, arrived.row, arrived.event)

    def rows(self) -> Iterator[Values]:
        return (msgspec.structs.astuple(row) for row in self._rows.changed())


class _Usage:
    def __init__(self) -> None:
        self._rows = UsageRows({})

    def take(self, arrived: Arrived) -> None:
        handler = USAGE_HANDLERS.get(type(arrived.event))
        if handler is not None:
            handler(self._rows, arrived.row, arrived.event)

    def rows(self) -> Iterator[Values]:
        for total in self._rows.totals():
            # What late usage moved away leaves no row behind.
            if total.requests or total.charged_upt:
                yield msgspec.structs.astuple(total)


class _Codes:
    def __init__(self) -> None:
        self._rows = CodeRows(())

    def take(self, arrived: Arrived) -> None:
        CODE_HANDLERS[type(arrived.event)](self._rows, arrived.row, arrived.event)

    def rows(self) -> Iterator[Values]:
        return (msgspec.structs.astuple(row) for row in self._rows.changed())


class Checked(msgspec.Struct, frozen=True):
    """A read model as the audit sees it. `key_columns`: how many lead the row; `version_at`: which

    column is the event's version, None where rows add up many events.
    """

    name: str
    query: LiteralString
    key_columns: int
    version_at: int | None
    made: Callable[[], Model]
    kind: str = ACCOUNT.kind
    """Of the streams that its rows are made from."""


MODELS: Final = (
    Checked(BALANCE, BALANCE_ROWS, 1, 1, _Balance),
    Checked(STATEMENT, STATEMENT_ROWS, 2, 1, _Statement),
    Checked(REQUESTS, REQUEST_ROWS, 2, 30, _Requests),
    Checked(USAGE, USAGE_ROWS, 5, None, _Usage),
    Checked(CODES, CODE_ROWS, 1, 13, _Codes, CODE.kind),
)


class ReadModelsCheck:
    """Accounts whose chain is broken are left out: there is nothing to compare with."""

    def __init__(self, connection: Connection, findings: Findings) -> None:
        self._connection: Final = connection
        self._findings: Final = findings

    async def run(
        self, lines: Sequence[Line], progress: Progress, note: Callable[[str], None]
    ) -> None:
        """Folds the whole history of these streams, which are `comparable`, once more."""
        models: list[Checked] = []
        for model in MODELS:
            if await has_table(self._connection, model):
                models.append(model)
            else:
                note(f"there is no table read.{model.name} yet: not compared")
        done = 0
        for kind in sorted({kind_of(line.stream) for line in lines}):
            own = [model for model in models if model.kind == kind]
            for group in _groups([line for line in lines if kind_of(line.stream) == kind]):
                async with self._connection.transaction():
                    await self._group(own, group)
                done += len(group)
                progress("read models", done, len(lines))

    async def _group(self, models: Sequence[Checked], streams: list[str]) -> None:
        """One moment of some accounts: events, what each consumer has applied, and the tables."""
        applied = {
            (consumer, stream): version
            for consumer, stream, version in await fetch_all(
                self._connection,
                APPLIED,
                {"consumers": [model.name for model in models], "streams": streams},
            )
        }
        shadows = [(model, model.made()) for model in models]
        async for page in self._events(streams):
            for row in page:
                try:
                    _fold(row, shadows, applied)
                except ValueError as error:
                    self._findings.add(READ_MODELS, row.stream, row.version, str(error))
                    return
        for model, shadow in shadows:
            found = await fetch_all(self._connection, model.query, {"streams": streams})
            compare_rows(
                self._findings, model, keyed(model, found), keyed(model, shadow.rows()), applied
            )

    async def _events(self, streams: list[str]) -> AsyncGenerator[list[Recorded]]:
        if len(streams) == 1:
            # However long it is, each page costs the same.
            version = 0
            while page := await read_stream(self._connection, streams[0], version + 1):
                yield page
                version = page[-1].version
            return
        found = await fetch_all(self._connection, EVENTS, {"streams": streams})
        yield [Recorded(*values) for values in found]


async def has_table(connection: Connection, model: Checked) -> bool:
    row = await fetch_one(connection, HAS_TABLE, {"table": model.name})
    return row is not None and bool(row[0])


def compare_rows(
    findings: Findings,
    model: Checked,
    found: Rows,
    expected: Rows,
    applied: dict[tuple[str, str], int],
) -> None:
    """Notes every row that the table has otherwise; `applied`: (consumer, stream) → version."""
    for key in sorted(found.keys() | expected.keys()):
        table_row, own_row = found.get(key), expected.get(key)
        if table_row == own_row:
            continue
        if table_row is None:
            what = f"read.{model.name} lacks the row {_named(key)}"
        elif own_row is None:
            what = f"read.{model.name} has a row {_named(key)} that no event made"
        else:
            what = f"read.{model.name} {_named(key)}: another row than the events make"
        row = own_row or table_row
        assert row is not None
        version = applied.get((model.name, str(key[0])), 0)
        if model.version_at is not None:
            version = row[model.version_at]
        findings.add(READ_MODELS, str(key[0]), version, what)


def _fold(
    row: Recorded, shadows: Sequence[tuple[Checked, Model]], applied: dict[tuple[str, str], int]
) -> None:
    arrived = Arrived(row, decode(row))
    for model, shadow in shadows:
        if row.version <= applied.get((model.name, row.stream), 0):
            shadow.take(arrived)


def keyed(model: Checked, rows: Iterable[Sequence[Any]]) -> Rows:
    """Rows of a model by their leading columns."""
    return {tuple(row[: model.key_columns]): tuple(row) for row in rows}


def _named(key: Values) -> str:
    return " ".join(str(part) for part in key)


def comparable(lines: Iterable[Line], kind: str = ACCOUNT.kind) -> list[Line]:
    """The streams of a kind among them that the tables can be compared with, by name."""
    found = [
        line for line in lines if line.intact and line.foldable and kind_of(line.stream) == kind
    ]
    return sorted(found, key=lambda line: line.stream)


def _groups(accounts: Sequence[Line]) -> Iterator[list[str]]:
    """Accounts in groups of about GROUP_EVENTS events; a longer account is a group of its own."""
    group: list[str] = []
    events = 0
    for line in accounts:
        if line.version >= GROUP_EVENTS:
            yield [line.stream]
            continue
        group.append(line.stream)
        events += line.version
        if events >= GROUP_EVENTS or len(group) >= GROUP_ACCOUNTS:
            yield group
            group, events = [], 0
    if group:
        yield group
