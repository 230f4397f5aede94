"""Usage added up by the hour and the day, from the read tables. For display only."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from backend.kit.postgres import Connection
from backend.ledger.account import HOUR_US
from backend.ledger.planned import fetch_planned
from backend.ledger.record_filters import UsageFilter
from schemas.errors import BadRequest

USAGE_TOTALS: Final = """
SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(errors), 0)::bigint,
    coalesce(sum(refused), 0)::bigint, coalesce(sum(plan_requests), 0)::bigint,
    coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(cached_tokens), 0)::bigint,
    coalesce(sum(cache_write_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
    coalesce(sum(charged_upt), 0)::bigint, coalesce(sum(duration_ms), 0)::bigint
FROM read.usage
WHERE (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND hour >= %(from_hour)s AND hour < %(to_hour)s
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
"""
LIST_USAGE: Final = """
SELECT hour / %(step)s::integer, model, sum(requests)::bigint, sum(errors)::bigint,
    sum(refused)::bigint, sum(plan_requests)::bigint, sum(input_tokens)::bigint,
    sum(cached_tokens)::bigint, sum(cache_write_tokens)::bigint, sum(output_tokens)::bigint,
    sum(charged_upt)::bigint, sum(duration_ms)::bigint
FROM read.usage
WHERE (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND hour >= %(from_hour)s AND hour < %(to_hour)s
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT %(limit)s
"""

ROWS_MAX: Final = 10_000
_LAST_HOUR: Final = 2**31 - 1
_HOURS: Final = {"hour": 1, "day": 24}

Step = Literal["hour", "day"]


class UsageTotals(msgspec.Struct, frozen=True):
    """Sums over requests that ended; `requests` includes `errors`, `refused` and `plan_requests`.

    `input_tokens` are the uncached ones; `cache_write_tokens` is the part of them that was written
    to a cache.
    """

    requests: int
    errors: int
    refused: int
    plan_requests: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    charged_upt: int
    duration_ms: int


class UsageEntry(msgspec.Struct, frozen=True):
    """What one model used in one hour or UTC day, which begins at `at_us`."""

    at_us: int
    model: str
    totals: UsageTotals


async def usage_totals(connection: Connection, wanted: UsageFilter) -> UsageTotals:
    (row,) = await fetch_planned(connection, USAGE_TOTALS, _arguments(wanted))
    return UsageTotals(*row)


async def list_usage(connection: Connection, wanted: UsageFilter, step: Step) -> list[UsageEntry]:
    """Per hour or UTC day and model, oldest first. Raises BadRequest for more than 10,000 rows."""
    arguments = {**_arguments(wanted), "step": _HOURS[step], "limit": ROWS_MAX + 1}
    rows = await fetch_planned(connection, LIST_USAGE, arguments)
    if len(rows) > ROWS_MAX:
        raise BadRequest("That is too much at once: choose a shorter time.")
    step_us = _HOURS[step] * HOUR_US
    return [UsageEntry(at * step_us, model, UsageTotals(*sums)) for at, model, *sums in rows]


def _arguments(wanted: UsageFilter) -> dict[str, int | str | None]:
    return {
        "account": wanted.account,
        "key": wanted.key,
        "model": wanted.model,
        "channel": wanted.channel,
        "from_hour": min(wanted.since_us // HOUR_US, _LAST_HOUR),
        "to_hour": min(-(-wanted.until_us // HOUR_US), _LAST_HOUR),
    }
