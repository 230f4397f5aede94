"""The usage log: every request and what became of it, from the read tables. For display only."""

from __future__ import annotations

from typing import Final, LiteralString

import msgspec

from backend.kit.postgres import Connection, fetch_one
from backend.ledger.planned import fetch_planned
from backend.ledger.record_filters import LIMIT_MAX, RequestFilter
from backend.ledger.record_pages import RequestPlace

FIND_REQUEST: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version,
    group_name, multiplier_ppm, plan_level, plan_version, plan_item, cache_write_1h_tokens, images,
    seconds, characters, searches
FROM read.requests
WHERE stream = %(account)s AND request_id = %(request_id)s::uuid
"""
LIST_NEWEST: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version,
    group_name, multiplier_ppm, plan_level, plan_version, plan_item, cache_write_1h_tokens, images,
    seconds, characters, searches
FROM read.requests r
WHERE (started_us, request_id) < (%(started_us)s, %(at_request)s::uuid)
    AND (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND started_us >= %(since_us)s AND started_us < %(until_us)s
    AND (%(outcomes)s::text[] IS NULL OR outcome = ANY(%(outcomes)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR charged_upt >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR charged_upt <= %(most_upt)s::bigint)
ORDER BY started_us DESC, r.request_id DESC LIMIT %(limit)s
"""
"""By the column, not by its text of the same name, which no index knows."""
LIST_ONWARD: Final = """
SELECT stream, request_id::text, outcome, key, model, price_model, price_version, purpose,
    streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version,
    group_name, multiplier_ppm, plan_level, plan_version, plan_item, cache_write_1h_tokens, images,
    seconds, characters, searches
FROM read.requests r
WHERE (started_us, request_id) > (%(started_us)s, %(at_request)s::uuid)
    AND (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND started_us >= %(since_us)s AND started_us < %(until_us)s
    AND (%(outcomes)s::text[] IS NULL OR outcome = ANY(%(outcomes)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR charged_upt >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR charged_upt <= %(most_upt)s::bigint)
ORDER BY started_us, r.request_id LIMIT %(limit)s
"""
TOTALS: Final = """
SELECT count(*), count(*) FILTER (WHERE plan_item IS NOT NULL AND outcome IN ('settled', 'late')),
    coalesce(sum(charged_upt), 0)::bigint, coalesce(sum(shortfall_upt), 0)::bigint,
    coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(cached_tokens), 0)::bigint,
    coalesce(sum(cache_write_tokens + cache_write_1h_tokens), 0)::bigint,
    coalesce(sum(output_tokens), 0)::bigint
FROM read.requests
WHERE (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND started_us >= %(since_us)s AND started_us < %(until_us)s
    AND (%(outcomes)s::text[] IS NULL OR outcome = ANY(%(outcomes)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR charged_upt >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR charged_upt <= %(most_upt)s::bigint)
"""


class RequestEntry(msgspec.Struct, frozen=True):
    """One request. `outcome`: open, settled, released, refused, or late (usage after a sweep).

    `input_tokens` are the uncached ones, cache writes apart; `reasoning_tokens` lie inside
    `output_tokens`. With `plan_item` a plan pays; a release gave its call back.
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
    group: str
    multiplier_ppm: int
    plan_level: int | None
    plan_version: int | None
    plan_item: str | None
    cache_write_1h_tokens: int
    images: int
    seconds: int
    characters: int
    searches: int


class RequestTotals(msgspec.Struct, frozen=True):
    """Sums over requests, open ones too; `plan_requests`: those that a plan has paid for."""

    requests: int
    plan_requests: int
    charged_upt: int
    shortfall_upt: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int


async def find_request(
    connection: Connection, account: str, request_id: str
) -> RequestEntry | None:
    """One request of an account. `request_id` must be a UUID (psycopg DataError otherwise)."""
    arguments = {"account": account, "request_id": request_id}
    row = await fetch_one(connection, FIND_REQUEST, arguments)
    return None if row is None else RequestEntry(*row)


async def list_requests(
    connection: Connection,
    wanted: RequestFilter,
    limit: int,
    before: RequestPlace | None = None,
) -> list[RequestEntry]:
    """Requests, newest first, at most 1,000. The next page is `before` = the last one's place."""
    return await _entries(connection, LIST_NEWEST, wanted, limit, before or RequestPlace())


async def list_requests_onward(
    connection: Connection, wanted: RequestFilter, limit: int, after: RequestPlace
) -> list[RequestEntry]:
    """Requests from the first on: for exports. `after`: the last one's place."""
    return await _entries(connection, LIST_ONWARD, wanted, limit, after)


async def request_totals(connection: Connection, wanted: RequestFilter) -> RequestTotals:
    (row,) = await fetch_planned(connection, TOTALS, msgspec.structs.asdict(wanted))
    return RequestTotals(*row)


async def _entries(
    connection: Connection,
    query: LiteralString,
    wanted: RequestFilter,
    limit: int,
    place: RequestPlace,
) -> list[RequestEntry]:
    arguments = {
        **msgspec.structs.asdict(wanted),
        "started_us": place.started_us,
        "at_request": place.request_id,
        "limit": min(limit, LIMIT_MAX),
    }
    return [RequestEntry(*row) for row in await fetch_planned(connection, query, arguments)]
