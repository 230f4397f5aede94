"""`/api/statement`, `/api/requests`, `/api/usage`, `/api/ledger`: what the caller's account did.

Another account's ids are unknown here.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from litestar import get
from litestar.params import FromPath

from backend.explorer import LedgerEntry, LedgerPage
from backend.http.api.door import WALLET, AnyRequest, caller_of
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
    RecordsDoor,
    StepName,
)
from backend.ledger.record_texts import RequestLine


def record_routes(door: RecordsDoor) -> list[Any]:
    return [*_statement(door), *_requests(door), *_ledger(door)]


def _statement(door: RecordsDoor) -> list[Any]:
    @get("/statement", opt=WALLET, operation_id="listStatement", dependencies=ASKED_OF_STATEMENT)
    async def statement(
        request: AnyRequest,
        asked: Asked,
        limit: Limit = PAGE_ROWS,
        before: Before = None,
        after: After = None,
    ) -> StatementPage:
        """Every movement of the caller's points, newest first, with the balance after it."""
        account = caller_of(request).account
        return await statement_page(door, asked, account, limit, before, after)

    @get(
        "/statement/totals",
        opt=WALLET,
        operation_id="sumStatement",
        dependencies=ASKED_OF_STATEMENT,
    )
    async def totals(request: AnyRequest, asked: Asked, after: After = None) -> StatementSums:
        """Sums over the movements that a list with these filters has."""
        return await statement_sums(door, asked, caller_of(request).account, after)

    @get("/statement/balance", opt=WALLET, operation_id="showBalanceAt")
    async def balance(
        request: AnyRequest, at: At = None, exact: Exact = False, after: After = None
    ) -> BalanceAt:
        """What the caller had at a moment; with `exact` also what was held then."""
        return await balance_at(door, caller_of(request).account, at, exact, after)

    return [statement, totals, balance]


def _requests(door: RecordsDoor) -> list[Any]:
    @get("/requests", opt=WALLET, operation_id="listRequests", dependencies=ASKED_OF_REQUESTS)
    async def requests(
        request: AnyRequest,
        asked: Asked,
        limit: Limit = PAGE_ROWS,
        before: Before = None,
        after: After = None,
    ) -> RequestsPage:
        """Every request of the caller's keys, newest first: failed, refused and free ones too."""
        account = caller_of(request).account
        return await requests_page(door, asked, account, limit, before, after)

    @get("/requests/totals", opt=WALLET, operation_id="sumRequests", dependencies=ASKED_OF_REQUESTS)
    async def totals(request: AnyRequest, asked: Asked, after: After = None) -> RequestSums:
        """Sums over the requests that a list with these filters has."""
        return await request_sums(door, asked, caller_of(request).account, after)

    @get("/requests/{request_id:uuid}", opt=WALLET, operation_id="showRequest")
    async def request_(
        request: AnyRequest, request_id: FromPath[UUID], after: After = None
    ) -> RequestLine:
        """One request, and what became of it."""
        return await one_request(door, caller_of(request).account, request_id, after)

    @get("/usage", opt=WALLET, operation_id="listUsage", dependencies=ASKED_OF_USAGE)
    async def usage(
        request: AnyRequest, asked: Asked, step: StepName = "day", after: After = None
    ) -> UsageAnswer:
        """What was used per hour or day and model, over the whole hours of a time."""
        return await usage_answer(door, asked, caller_of(request).account, step, after)

    return [requests, totals, request_, usage]


def _ledger(door: RecordsDoor) -> list[Any]:
    @get("/ledger", opt=WALLET, operation_id="listLedger", dependencies=ASKED_OF_LEDGER)
    async def ledger(
        request: AnyRequest, asked: Asked, limit: Limit = PAGE_ROWS, before: Before = None
    ) -> LedgerPage:
        """The events of the caller's account as they were recorded, newest first."""
        return await ledger_page(door, asked, caller_of(request).account, limit, before)

    @get("/ledger/{event_id:uuid}", opt=WALLET, operation_id="showLedgerEntry")
    async def entry(request: AnyRequest, event_id: FromPath[UUID]) -> LedgerEntry:
        """One event of the caller's account."""
        return await one_entry(door, event_id, caller_of(request).account)

    return [ledger, entry]
