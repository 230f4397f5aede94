"""What people read of accounts: balance, statement, requests and usage, from the read tables.

Eventually consistent and for display: a decision never reads here.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec

from backend.kit.postgres import Connection, fetch_all, fetch_one
from backend.ledger.account import HOUR_US

FIND_BALANCE: Final = """
SELECT stream, posted_upt, held_upt, available_upt, issued_upt, charged_upt, shortfall_upt,
    open_holds, version, at_us
FROM read.balance WHERE stream = %(account)s
"""
LIST_STATEMENT: Final = """
SELECT version, kind, amount_upt, balance_upt, at_us, event_id, command_id, shard::integer,
    request_id::text, model, price_model, price_version, basis, swept, grant_kind, actor,
    explains_event_id
FROM read.statement
WHERE stream = %(account)s AND version < %(before)s
    AND at_us >= %(from_us)s AND at_us < %(to_us)s
ORDER BY version DESC LIMIT %(limit)s
"""
FIND_REQUEST: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version
FROM read.requests WHERE stream = %(account)s AND request_id = %(request_id)s::uuid
"""
LIST_REQUESTS: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version
FROM read.requests WHERE stream = %(account)s AND request_id < %(before)s::uuid
ORDER BY request_id DESC LIMIT %(limit)s
"""
LIST_ALL_REQUESTS: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version
FROM read.requests WHERE request_id < %(before)s::uuid
ORDER BY request_id DESC LIMIT %(limit)s
"""
USAGE_TOTALS: Final = """
SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(errors), 0)::bigint,
    coalesce(sum(refused), 0)::bigint, coalesce(sum(input_tokens), 0)::bigint,
    coalesce(sum(cached_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
    coalesce(sum(charged_upt), 0)::bigint, coalesce(sum(duration_ms), 0)::bigint
FROM read.usage
WHERE stream = %(account)s AND hour >= %(from_hour)s AND hour < %(to_hour)s
"""
LIST_DAILY_USAGE: Final = """
SELECT hour / 24, model, sum(requests)::bigint, sum(errors)::bigint, sum(refused)::bigint,
    sum(input_tokens)::bigint, sum(cached_tokens)::bigint, sum(output_tokens)::bigint,
    sum(charged_upt)::bigint, sum(duration_ms)::bigint
FROM read.usage
WHERE stream = %(account)s AND hour >= %(from_hour)s AND hour < %(to_hour)s
GROUP BY 1, 2 ORDER BY 1, 2
"""

LIMIT_MAX: Final = 1_000
DAY_S: Final = 86_400
ALWAYS_US: Final = 2**62
"""An end of time beyond any event."""
NEWEST_VERSION: Final = 2**63 - 1
NEWEST_REQUEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_LAST_HOUR: Final = 2**31 - 1


class Balance(msgspec.Struct, frozen=True):
    """Micro-points of an account after `version`. available = posted − held; issued: ever given."""

    account: str
    posted_upt: int
    held_upt: int
    available_upt: int
    issued_upt: int
    charged_upt: int
    shortfall_upt: int
    open_holds: int
    version: int
    at_us: int


class StatementEntry(msgspec.Struct, frozen=True):
    """One movement: `amount_upt` signed, `balance_upt` posted after it.

    `kind` is grant, settle, correct or late. `shard` is the partition of `suanpan.ledger` that
    carries the event; `version` is its version in the account's stream.
    """

    version: int
    kind: str
    amount_upt: int
    balance_upt: int
    at_us: int
    event_id: UUID
    command_id: UUID
    shard: int
    request_id: str | None
    model: str | None
    price_model: str | None
    price_version: int | None
    basis: str | None
    swept: bool
    grant_kind: str | None
    actor: str | None
    explains_event_id: UUID | None


class RequestEntry(msgspec.Struct, frozen=True):
    """One request. `outcome`: open, settled, released, refused, or late (usage after a sweep).

    `input_tokens` are the uncached ones; `reasoning_tokens` lie inside `output_tokens`.
    """

    account: str
    request_id: str
    outcome: str
    key: int
    model: str
    price_model: str
    price_version: int
    purpose: str | None
    streamed: bool | None
    held_upt: int
    charged_upt: int
    shortfall_upt: int
    missing_upt: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    basis: str | None
    channel: int | None
    upstream_model: str | None
    status: int | None
    error: str | None
    reason: str | None
    attempts: int
    swept: bool
    started_us: int
    ended_us: int | None
    duration_ms: int | None
    first_token_ms: int | None
    version: int


class UsageTotals(msgspec.Struct, frozen=True):
    """Sums over requests that ended; `requests` includes `errors` and `refused`.

    `input_tokens` are the uncached ones, cache writes included.
    """

    requests: int
    errors: int
    refused: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    charged_upt: int
    duration_ms: int


class DailyUsage(msgspec.Struct, frozen=True):
    """What one model used on one UTC day, `day_s` seconds after 1970 at its start."""

    day_s: int
    model: str
    totals: UsageTotals


async def find_balance(connection: Connection, account: str) -> Balance | None:
    """The balance of `account:…` as projected, or None before its first event has arrived."""
    row = await fetch_one(connection, FIND_BALANCE, {"account": account})
    return None if row is None else Balance(*row)


async def list_statement(
    connection: Connection,
    account: str,
    limit: int,
    before: int = NEWEST_VERSION,
    from_us: int = 0,
    to_us: int = ALWAYS_US,
) -> list[StatementEntry]:
    """Movements of an account, newest first, at most 1,000.

    The next page is `before` = the last entry's version. `from_us` ≤ time < `to_us`.
    """
    arguments = {
        "account": account,
        "limit": min(limit, LIMIT_MAX),
        "before": before,
        "from_us": from_us,
        "to_us": to_us,
    }
    rows = await fetch_all(connection, LIST_STATEMENT, arguments)
    return [StatementEntry(*row) for row in rows]


async def find_request(
    connection: Connection, account: str, request_id: str
) -> RequestEntry | None:
    """One request of an account. `request_id` must be a UUID (psycopg DataError otherwise)."""
    arguments = {"account": account, "request_id": request_id}
    row = await fetch_one(connection, FIND_REQUEST, arguments)
    return None if row is None else RequestEntry(*row)


async def list_requests(
    connection: Connection,
    account: str | None,
    limit: int,
    before: str = NEWEST_REQUEST,
) -> list[RequestEntry]:
    """Requests of an account, or of all (None), newest first, at most 1,000.

    The next page is `before` = the last entry's request id (a UUID; psycopg DataError otherwise).
    """
    arguments: dict[str, Any] = {"limit": min(limit, LIMIT_MAX), "before": before}
    if account is None:
        rows = await fetch_all(connection, LIST_ALL_REQUESTS, arguments)
    else:
        rows = await fetch_all(connection, LIST_REQUESTS, {**arguments, "account": account})
    return [RequestEntry(*row) for row in rows]


async def usage_totals(
    connection: Connection, account: str, from_us: int = 0, to_us: int = ALWAYS_US
) -> UsageTotals:
    """Sums over the whole hours that touch [`from_us`, `to_us`)."""
    row = await fetch_one(connection, USAGE_TOTALS, _hours(account, from_us, to_us))
    assert row is not None, "a sum without groups is one row"
    return UsageTotals(*row)


async def list_daily_usage(
    connection: Connection, account: str, from_us: int = 0, to_us: int = ALWAYS_US
) -> list[DailyUsage]:
    """Per UTC day and model, oldest first, over the whole hours that touch [`from_us`, `to_us`)."""
    rows = await fetch_all(connection, LIST_DAILY_USAGE, _hours(account, from_us, to_us))
    return [DailyUsage(day * DAY_S, model, UsageTotals(*sums)) for day, model, *sums in rows]


def _hours(account: str, from_us: int, to_us: int) -> dict[str, Any]:
    return {
        "account": account,
        "from_hour": min(from_us // HOUR_US, _LAST_HOUR),
        "to_hour": min(-(-to_us // HOUR_US), _LAST_HOUR),
    }
