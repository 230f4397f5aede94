"""The records of an export, page by page: each page is a short transaction of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from backend.journal.reader import head, read_page
from backend.kit.postgres import Pool
from backend.ledger.exports import Export, ExportKind
from backend.ledger.log_entries import list_entries_onward
from backend.ledger.record_filters import (
    FIRST_REQUEST,
    EntryFilter,
    RequestFilter,
    StatementFilter,
    entry_filter,
    request_filter,
    statement_filter,
)
from backend.ledger.record_pages import RequestPlace, StatementPlace
from backend.ledger.record_texts import (
    LedgerLine,
    Movement,
    RequestLine,
    ledger_line_of,
    movement_of,
    request_line_of,
)
from backend.ledger.request_log import list_requests_onward
from backend.ledger.statements import list_statement_onward
from schemas.event import LEDGER, START, Position, Recorded

LEDGER_ROWS: Final = 500
"""Payloads are larger than lines of a statement."""

Pages = AsyncGenerator[Sequence[msgspec.Struct]]


def line_type(kind: ExportKind) -> type[msgspec.Struct]:
    """What the lines of such an export are."""
    match kind:
        case ExportKind.STATEMENT:
            return Movement
        case ExportKind.REQUESTS:
            return RequestLine
        case ExportKind.LEDGER:
            return LedgerLine


def pages_of(pool: Pool, export: Export, page_rows: int) -> Pages:
    """Its lines from the first on. Raises BadRequest for filters that are not right."""
    account = export.account
    match export.kind:
        case ExportKind.STATEMENT:
            return _statement(pool, statement_filter(export.filters, account), page_rows)
        case ExportKind.REQUESTS:
            return _requests(pool, request_filter(export.filters, account), page_rows)
        case ExportKind.LEDGER:
            wanted = entry_filter(export.filters, account)
            return _whole_ledger(pool, wanted) if account is None else _ledger(pool, wanted)


async def _statement(pool: Pool, wanted: StatementFilter, page_rows: int) -> Pages:
    place = StatementPlace(version=0)
    while True:
        async with pool.connection() as connection:
            page = await list_statement_onward(connection, wanted, page_rows, place)
        if page:
            yield [movement_of(entry) for entry in page]
        if len(page) < page_rows:
            return
        place = StatementPlace(stream=page[-1].account, version=page[-1].version)


async def _requests(pool: Pool, wanted: RequestFilter, page_rows: int) -> Pages:
    place = RequestPlace(0, FIRST_REQUEST)
    while True:
        async with pool.connection() as connection:
            page = await list_requests_onward(connection, wanted, page_rows, place)
        if page:
            yield [request_line_of(entry) for entry in page]
        if len(page) < page_rows:
            return
        place = RequestPlace(page[-1].started_us, page[-1].request_id)


async def _ledger(pool: Pool, wanted: EntryFilter) -> Pages:
    version = 0
    while True:
        async with pool.connection() as connection:
            page = await list_entries_onward(connection, wanted, LEDGER_ROWS, version)
        if page:
            yield [ledger_line_of(row) for row in page]
        if len(page) < LEDGER_ROWS:
            return
        version = page[-1].version


async def _whole_ledger(pool: Pool, wanted: EntryFilter) -> Pages:
    """In the log's own order, up to where its readers had come when the export began."""
    async with pool.connection() as connection:
        upto = await head(connection)
    position = START
    while page := await _page(pool, position):
        rows = [row for row in page if row.position <= upto and _is_wanted(wanted, row)]
        if rows:
            yield [ledger_line_of(row) for row in rows]
        position = page[-1].position
        if position >= upto:
            return


async def _page(pool: Pool, position: Position) -> list[Recorded]:
    async with pool.connection() as connection:
        return await read_page(connection, position, LEDGER_ROWS)


def _is_wanted(wanted: EntryFilter, row: Recorded) -> bool:
    if row.topic != LEDGER or not wanted.since_us <= row.at_us < wanted.until_us:
        return False
    return wanted.types is None or row.type in wanted.types
