"""Answers of lists of records, for an account's owner and for administrators alike."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from backend.explorer import LedgerEntry, LedgerPage
from backend.http.api.record_params import RecordsDoor
from backend.kit.time_text import iso_text, parse_time
from backend.ledger.record_filters import (
    RecordQuery,
    entry_filter,
    limit_of,
    request_filter,
    statement_filter,
    usage_filter,
)
from backend.ledger.record_pages import (
    request_cursor,
    request_place,
    statement_cursor,
    statement_place,
)
from backend.ledger.record_texts import Movement, RequestLine, movement_of, request_line_of
from backend.ledger.request_log import find_request, list_requests, request_totals
from backend.ledger.statements import (
    find_posted_at,
    fold_to,
    list_statement,
    statement_totals,
)
from backend.ledger.usage_log import Step, UsageTotals, list_usage, usage_totals
from schemas.errors import BadRequest, NotFound
from schemas.money import format_points

FOLDED_EVENTS_MAX: Final = 50_000
"""A longer history is not folded between two calls; the command line folds any."""


class StatementPage(msgspec.Struct, frozen=True):
    """Movements, newest first. `next` is the next page's `before`; null at the end. `stale`: what
    was waited for had not arrived.
    """

    entries: list[Movement]
    next: str | None
    stale: bool


class StatementSums(msgspec.Struct, frozen=True):
    """`points_in` − `points_out` is what the movements changed the balances by. `charged`:
    requests; `plans`: subscriptions, less what changes gave back.
    """

    entries: int
    points_in: str
    points_out: str
    charged: str
    plans: str
    stale: bool


class BalanceAt(msgspec.Struct, frozen=True):
    """What an account had at a moment, after the event of this version (0: none yet).

    `held` and `available` are null unless `exact` was asked for.
    """

    account: str
    at: str
    posted: str
    held: str | None
    available: str | None
    version: int
    stale: bool


class RequestsPage(msgspec.Struct, frozen=True):
    """Requests, newest first. `next` is the next page's `before`; null at the end."""

    requests: list[RequestLine]
    next: str | None
    stale: bool


class RequestSums(msgspec.Struct, frozen=True):
    """`plan_requests`: those that a plan has paid for."""

    requests: int
    plan_requests: int
    charged: str
    shortfall: str
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    stale: bool


class UsageLine(msgspec.Struct, frozen=True):
    """What a model used in the hour or UTC day that begins `at`. `requests` includes `errors`,
    `refused` and `plan_requests`; `input_tokens` includes `cache_write_tokens`.
    """

    at: str
    model: str
    requests: int
    errors: int
    refused: int
    plan_requests: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    charged: str
    duration_ms: int


class UsageAnswer(msgspec.Struct, frozen=True):
    """Oldest first; `total` is the sum of the lines, of all models and times."""

    usage: list[UsageLine]
    total: UsageLine
    stale: bool


async def statement_page(
    door: RecordsDoor,
    asked: RecordQuery,
    account: str | None,
    limit: int,
    before: str | None,
    after: int | None,
) -> StatementPage:
    wanted = statement_filter(asked, account)
    place = statement_place(before, account)
    stale = await door.stale("statement", account, after)
    async with door.pool.connection() as connection:
        found = await list_statement(connection, wanted, limit_of(limit), place)
    following = None
    if len(found) == limit:
        last = found[-1]
        following = statement_cursor(account, last.at_us, last.account, last.version)
    return StatementPage([movement_of(entry) for entry in found], following, stale)


async def statement_sums(
    door: RecordsDoor, asked: RecordQuery, account: str | None, after: int | None
) -> StatementSums:
    wanted = statement_filter(asked, account)
    stale = await door.stale("statement", account, after)
    async with door.pool.connection() as connection:
        sums = await statement_totals(connection, wanted)
    return StatementSums(
        sums.entries,
        format_points(sums.in_upt),
        format_points(sums.out_upt),
        format_points(sums.charged_upt),
        format_points(sums.plans_upt),
        stale,
    )


async def balance_at(
    door: RecordsDoor, account: str, at: str | None, exact: bool, after: int | None
) -> BalanceAt:
    at_us = door.clock.now_us() if at is None else parse_time(at)
    stale = await door.stale("statement", account, after)
    async with door.pool.connection() as connection:
        if exact:
            folded = await fold_to(connection, account, at_us, FOLDED_EVENTS_MAX)
            posted_upt, version = folded.posted_upt, folded.version
            held, available = format_points(folded.held_upt), format_points(folded.available_upt)
        else:
            posted = await find_posted_at(connection, account, at_us)
            posted_upt, version = posted.posted_upt, posted.version
            held = available = None
    return BalanceAt(
        account, iso_text(at_us), format_points(posted_upt), held, available, version, stale
    )


async def requests_page(
    door: RecordsDoor,
    asked: RecordQuery,
    account: str | None,
    limit: int,
    before: str | None,
    after: int | None,
) -> RequestsPage:
    wanted = request_filter(asked, account)
    place = request_place(before)
    stale = await door.stale("requests", account, after)
    async with door.pool.connection() as connection:
        found = await list_requests(connection, wanted, limit_of(limit), place)
    following = None
    if len(found) == limit:
        following = request_cursor(found[-1].started_us, found[-1].request_id)
    return RequestsPage([request_line_of(entry) for entry in found], following, stale)


async def request_sums(
    door: RecordsDoor, asked: RecordQuery, account: str | None, after: int | None
) -> RequestSums:
    wanted = request_filter(asked, account)
    stale = await door.stale("requests", account, after)
    async with door.pool.connection() as connection:
        sums = await request_totals(connection, wanted)
    return RequestSums(
        requests=sums.requests,
        plan_requests=sums.plan_requests,
        charged=format_points(sums.charged_upt),
        shortfall=format_points(sums.shortfall_upt),
        input_tokens=sums.input_tokens,
        cached_tokens=sums.cached_tokens,
        cache_write_tokens=sums.cache_write_tokens,
        output_tokens=sums.output_tokens,
        stale=stale,
    )


async def one_request(
    door: RecordsDoor, account: str | None, request_id: UUID, after: int | None
) -> RequestLine:
    """Raises NotFound, for another account's request too."""
    await door.stale("requests", account, after)
    async with door.pool.connection() as connection:
        if account is not None:
            found = await find_request(connection, account, str(request_id))
        else:
            wanted = request_filter(RecordQuery(request_id=str(request_id)), None)
            found = next(iter(await list_requests(connection, wanted, 1)), None)
    if found is None:
        raise NotFound("There is no such request.")
    return request_line_of(found)


async def usage_answer(
    door: RecordsDoor, asked: RecordQuery, account: str | None, step: str, after: int | None
) -> UsageAnswer:
    wanted, chosen = usage_filter(asked, account), _step(step)
    stale = await door.stale("usage", account, after)
    async with door.pool.connection() as connection, connection.transaction():
        found = await list_usage(connection, wanted, chosen)
        total = await usage_totals(connection, wanted)
    lines = [_usage_line(iso_text(entry.at_us), entry.model, entry.totals) for entry in found]
    first = lines[0].at if lines else iso_text(max(0, min(wanted.since_us, door.clock.now_us())))
    return UsageAnswer(lines, _usage_line(first, "", total), stale)


async def ledger_page(
    door: RecordsDoor, asked: RecordQuery, stream: str | None, limit: int, before: str | None
) -> LedgerPage:
    return await door.explorer.page(entry_filter(asked, stream), limit_of(limit), before)


async def one_entry(door: RecordsDoor, event_id: UUID, stream: str | None) -> LedgerEntry:
    return await door.explorer.one(event_id, stream)


def _step(text: str) -> Step:
    match text:
        case "hour":
            return "hour"
        case "day":
            return "day"
        case _:
            raise BadRequest("`step` is `hour` or `day`.")


def _usage_line(at: str, model: str, totals: UsageTotals) -> UsageLine:
    return UsageLine(
        at=at,
        model=model,
        requests=totals.requests,
        errors=totals.errors,
        refused=totals.refused,
        plan_requests=totals.plan_requests,
        input_tokens=totals.input_tokens,
        cached_tokens=totals.cached_tokens,
        cache_write_tokens=totals.cache_write_tokens,
        output_tokens=totals.output_tokens,
        charged=format_points(totals.charged_upt),
        duration_ms=totals.duration_ms,
    )
