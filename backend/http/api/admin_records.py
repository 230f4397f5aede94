"""`/api/admin/…`: the same lists over all accounts, or those of one person."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from litestar import get
from litestar.params import FromPath, FromQuery

from backend.explorer import LedgerEntry, LedgerPage
from backend.http.api.door import ADMIN
from backend.http.api.record_answers import (
    BalanceAt,
    RequestsPage,
    RequestSums,
    StatementPage,
    StatementSums,
    UsageAnswer,
    balance_at,
    ledger_page,
    one_entry,
    one_request,
    request_sums,
    requests_page,
    statement_page,
    statement_sums,
    usage_answer,
)
from backend.http.api.record_params import (
    ASKED_OF_LEDGER,
    ASKED_OF_REQUESTS,
    ASKED_OF_STATEMENT,
    ASKED_OF_USAGE,
    PAGE_ROWS,
    After,
    Asked,
    At,
    Before,
    Exact,
    Limit,
    Person,
    RecordsDoor,
    StepName,
    account_of,
)
from backend.ledger.log_entries import ledger_stream
from backend.ledger.record_texts import RequestLine
from schemas.errors import BadRequest
from schemas.ids import PersonId, account_stream


def admin_record_routes(door: RecordsDoor) -> list[Any]:
    return [*_statement(door), *_requests(door), *_ledger(door)]


def _statement(door: RecordsDoor) -> list[Any]:
    @get(
        "/admin/statement",
        opt=ADMIN,
        operation_id="listAllStatements",
        dependencies=ASKED_OF_STATEMENT,
    )
    async def statement(
        asked: Asked,
        person: Person = None,
        limit: Limit = PAGE_ROWS,
        before: Before = None,
        after: After = None,
    ) -> StatementPage:
        """Movements of one person's points, or of everybody's by time, newest first."""
        return await statement_page(door, asked, account_of(person), limit, before, after)

    @get(
        "/admin/statement/totals",
        opt=ADMIN,
        operation_id="sumAllStatements",
        dependencies=ASKED_OF_STATEMENT,
    )
    async def totals(asked: Asked, person: Person = None, after: After = None) -> StatementSums:
        """Sums over the movements that a list with these filters has."""
        return await statement_sums(door, asked, account_of(person), after)

    @get("/admin/statement/balance", opt=ADMIN, operation_id="showBalanceOfPersonAt")
    async def balance(
        person: FromQuery[int], at: At = None, exact: Exact = False, after: After = None
    ) -> BalanceAt:
        """What a person had at a moment; with `exact` also what was held then."""
        return await balance_at(door, account_stream(PersonId(person)), at, exact, after)

    return [statement, totals, balance]


def _requests(door: RecordsDoor) -> list[Any]:
    @get(
        "/admin/requests",
        opt=ADMIN,
        operation_id="listAllRequests",
        dependencies=ASKED_OF_REQUESTS,
    )
    async def requests(
        asked: Asked,
        person: Person = None,
        limit: Limit = PAGE_ROWS,
        before: Before = None,
        after: After = None,
    ) -> RequestsPage:
        """Requests of one person or of everybody, newest first."""
        return await requests_page(door, asked, account_of(person), limit, before, after)

    @get(
        "/admin/requests/totals",
        opt=ADMIN,
        operation_id="sumAllRequests",
        dependencies=ASKED_OF_REQUESTS,
    )
    async def totals(asked: Asked, person: Person = None, after: After = None) -> RequestSums:
        """Sums over the requests that a list with these filters has."""
        return await request_sums(door, asked, account_of(person), after)

    @get("/admin/requests/{request_id:uuid}", opt=ADMIN, operation_id="showAnyRequest")
    async def request_(request_id: FromPath[UUID]) -> RequestLine:
        """One request of anybody's."""
        return await one_request(door, None, request_id, None)

    @get("/admin/usage", opt=ADMIN, operation_id="listAllUsage", dependencies=ASKED_OF_USAGE)
    async def usage(
        asked: Asked, person: Person = None, step: StepName = "day", after: After = None
    ) -> UsageAnswer:
        """What one person or everybody used per hour or day and model."""
        return await usage_answer(door, asked, account_of(person), step, after)

    return [requests, totals, request_, usage]


def _ledger(door: RecordsDoor) -> list[Any]:
    @get("/admin/ledger", opt=ADMIN, operation_id="listWholeLedger", dependencies=ASKED_OF_LEDGER)
    async def ledger(
        asked: Asked,
        person: Person = None,
        stream: FromQuery[str | None] = None,
        limit: Limit = PAGE_ROWS,
        before: Before = None,
    ) -> LedgerPage:
        """Events of one person's account, of a stream such as `code:…`, or of the whole ledger."""
        if person is not None and stream is not None:
            raise BadRequest("Either `person` or `stream`.")
        wanted = account_of(person) if stream is None else ledger_stream(stream)
        return await ledger_page(door, asked, wanted, limit, before)

    @get("/admin/ledger/{event_id:uuid}", opt=ADMIN, operation_id="showAnyLedgerEntry")
    async def entry(event_id: FromPath[UUID]) -> LedgerEntry:
        """One event of the ledger, whoever's it is."""
        return await one_entry(door, event_id, None)

    return [ledger, entry]
