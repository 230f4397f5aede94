"""`requests`: one row per request, whatever became of it: failed, refused and free ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from projections.accounts import of_accounts
from projections.requests.rows import (
    RequestRow,
    RequestRows,
    extended,
    fell_short,
    held,
    late,
    refused,
    released,
    settled,
)
from projections.target import Schema, consumer_name, enter
from schemas.event import LEDGER, Recorded
from schemas.ledger import (
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsHeld,
    RequestRefused,
    ShortfallRecorded,
    UsageLate,
)

HANDLERS: Final[dict[type[Any], Callable[[RequestRows, Recorded, Any], None]]] = {
    PointsHeld: held,
    HoldExtended: extended,
    HoldSettled: settled,
    HoldReleased: released,
    ShortfallRecorded: fell_short,
    UsageLate: late,
    RequestRefused: refused,
}

RequestFact = (
    PointsHeld
    | HoldExtended
    | HoldSettled
    | HoldReleased
    | ShortfallRecorded
    | UsageLate
    | RequestRefused
)

LOAD: Final = """
SELECT r.stream, r.request_id::text, r.outcome, r.key, r.model, r.price_model, r.price_version,
    r.purpose, r.streamed, r.held_upt, r.charged_upt, r.shortfall_upt, r.missing_upt,
    r.input_tokens, r.cached_tokens, r.cache_write_tokens, r.output_tokens, r.reasoning_tokens,
    r.basis, r.channel, r.upstream_model, r.status, r.error, r.reason, r.attempts, r.swept,
    r.started_us, r.ended_us, r.duration_ms, r.first_token_ms, r.version,
    r.group_name, r.multiplier_ppm, r.plan_level, r.plan_version, r.plan_item,
    r.cache_write_1h_tokens, r.images, r.seconds, r.characters, r.searches
FROM json_to_recordset(%(keys)s::json) AS k(stream text, request_id uuid)
JOIN requests r ON r.stream = k.stream AND r.request_id = k.request_id
"""
SAVE: Final = """
INSERT INTO requests (stream, request_id, outcome, key, model, price_model, price_version,
    purpose, streamed, held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens,
    cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, basis, channel,
    upstream_model, status, error, reason, attempts, swept, started_us, ended_us, duration_ms,
    first_token_ms, version, group_name, multiplier_ppm, plan_level, plan_version, plan_item,
    cache_write_1h_tokens, images, seconds, characters, searches)
SELECT stream, request_id, outcome, key, model, price_model, price_version, purpose, streamed,
    held_upt, charged_upt, shortfall_upt, missing_upt, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, basis, channel, upstream_model, status,
    error, reason, attempts, swept, started_us, ended_us, duration_ms, first_token_ms, version,
    group_name, multiplier_ppm, plan_level, plan_version, plan_item, cache_write_1h_tokens, images,
    seconds, characters, searches
FROM json_to_recordset(%(rows)s::json) AS i(stream text, request_id uuid, outcome text,
    key bigint, model text, price_model text, price_version bigint, purpose text,
    streamed boolean, held_upt bigint, charged_upt bigint, shortfall_upt bigint,
    missing_upt bigint, input_tokens bigint, cached_tokens bigint, cache_write_tokens bigint,
    output_tokens bigint, reasoning_tokens bigint, basis text, channel bigint,
    upstream_model text, status integer, error text, reason text, attempts integer,
    swept boolean, started_us bigint, ended_us bigint, duration_ms bigint, first_token_ms bigint,
    version bigint, group_name text, multiplier_ppm bigint, plan_level integer,
    plan_version bigint, plan_item text, cache_write_1h_tokens bigint, images bigint,
    seconds bigint, characters bigint, searches bigint)
ORDER BY stream, request_id
ON CONFLICT (stream, request_id) DO UPDATE SET outcome = excluded.outcome,
    price_model = excluded.price_model, price_version = excluded.price_version,
    held_upt = excluded.held_upt, charged_upt = excluded.charged_upt,
    shortfall_upt = excluded.shortfall_upt, input_tokens = excluded.input_tokens,
    cached_tokens = excluded.cached_tokens, cache_write_tokens = excluded.cache_write_tokens,
    output_tokens = excluded.output_tokens, reasoning_tokens = excluded.reasoning_tokens,
    basis = excluded.basis, channel = excluded.channel,
    upstream_model = excluded.upstream_model, status = excluded.status, error = excluded.error,
    reason = excluded.reason, attempts = excluded.attempts, swept = excluded.swept,
    ended_us = excluded.ended_us, duration_ms = excluded.duration_ms,
    first_token_ms = excluded.first_token_ms, version = excluded.version,
    group_name = excluded.group_name, multiplier_ppm = excluded.multiplier_ppm,
    plan_level = excluded.plan_level, plan_version = excluded.plan_version,
    plan_item = excluded.plan_item, cache_write_1h_tokens = excluded.cache_write_1h_tokens,
    images = excluded.images, seconds = excluded.seconds, characters = excluded.characters,
    searches = excluded.searches
"""

NAME: Final = "requests"
TABLES: Final = ("requests",)
TOPICS: Final = (LEDGER,)

_ENCODER: Final = msgspec.json.Encoder()


class RequestsProjection:
    """A `Consumer` of the ledger."""

    def __init__(self, schema: Schema = Schema.READ) -> None:
        self._schema: Final = schema
        self.name: Final = consumer_name(NAME, schema)
        self.topics: Final = TOPICS

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        """Raises ValueError for an outcome without a request, or a second one."""
        await enter(connection, self._schema)
        facts = facts_of(batch)
        if not facts:
            return
        rows = await _load(connection, facts)
        for row, event in facts:
            HANDLERS[type(event)](rows, row, event)
        await connection.execute(SAVE, {"rows": _ENCODER.encode(rows.changed()).decode()})


def facts_of(batch: Sequence[Arrived]) -> list[tuple[Recorded, RequestFact]]:
    """The events of a batch that are about a request, with their rows."""
    return [
        (arrived.row, arrived.event)
        for arrived in of_accounts(batch)
        if isinstance(arrived.event, RequestFact)
    ]


async def _load(
    connection: Connection, facts: Sequence[tuple[Recorded, RequestFact]]
) -> RequestRows:
    """The stored rows of every request that the batch names."""
    keys = dict.fromkeys((row.stream, event.request_id) for row, event in facts)
    given = [{"stream": stream, "request_id": request_id} for stream, request_id in keys]
    stored = await fetch_all(connection, LOAD, {"keys": _ENCODER.encode(given).decode()})
    return RequestRows({(values[0], values[1]): RequestRow(*values) for values in stored})
