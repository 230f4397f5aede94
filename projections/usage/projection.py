"""`usage`: per hour, model, channel, key and account: how much was asked, answered and charged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from projections.accounts import of_accounts
from projections.target import Schema, consumer_name, enter
from projections.usage.rows import (
    UsageRows,
    Waiting,
    WaitingKey,
    held,
    late,
    refused,
    released,
    settled,
)
from schemas.event import LEDGER, Recorded
from schemas.ledger import HoldReleased, HoldSettled, PointsHeld, RequestRefused, UsageLate

HANDLERS: Final[dict[type[Any], Callable[[UsageRows, Recorded, Any], None]]] = {
    PointsHeld: held,
    HoldSettled: settled,
    HoldReleased: released,
    UsageLate: late,
    RequestRefused: refused,
}

UsageFact = PointsHeld | HoldSettled | HoldReleased | UsageLate | RequestRefused

LOAD: Final = """
SELECT w.stream, w.request_id::text, w.key, w.model, w.swept, w.hour, w.channel, w.errors,
    w.input_tokens, w.cached_tokens, w.output_tokens, w.charged_upt, w.duration_ms,
    w.plan_requests, w.cache_write_tokens
FROM json_to_recordset(%(keys)s::json) AS k(stream text, request_id uuid)
JOIN usage_waiting w ON w.stream = k.stream AND w.request_id = k.request_id
"""
SAVE_WAITING: Final = """
INSERT INTO usage_waiting (stream, request_id, key, model, swept, hour, channel, errors,
    input_tokens, cached_tokens, output_tokens, charged_upt, duration_ms, plan_requests,
    cache_write_tokens)
SELECT stream, request_id, key, model, swept, hour, channel, errors, input_tokens, cached_tokens,
    output_tokens, charged_upt, duration_ms, plan_requests, cache_write_tokens
FROM json_to_recordset(%(rows)s::json) AS i(stream text, request_id uuid, key bigint, model text,
    swept boolean, hour integer, channel bigint, errors bigint, input_tokens bigint,
    cached_tokens bigint, output_tokens bigint, charged_upt bigint, duration_ms bigint,
    plan_requests bigint, cache_write_tokens bigint)
ORDER BY stream, request_id
ON CONFLICT (stream, request_id) DO UPDATE SET swept = excluded.swept, hour = excluded.hour,
    channel = excluded.channel, errors = excluded.errors, input_tokens = excluded.input_tokens,
    cached_tokens = excluded.cached_tokens, output_tokens = excluded.output_tokens,
    charged_upt = excluded.charged_upt, duration_ms = excluded.duration_ms,
    plan_requests = excluded.plan_requests, cache_write_tokens = excluded.cache_write_tokens
"""
FORGET_WAITING: Final = """
DELETE FROM usage_waiting w
USING json_to_recordset(%(keys)s::json) AS k(stream text, request_id uuid)
WHERE w.stream = k.stream AND w.request_id = k.request_id
"""
ADD: Final = """
INSERT INTO usage AS u (stream, hour, model, channel, key, requests, errors, refused,
    input_tokens, cached_tokens, output_tokens, charged_upt, duration_ms, plan_requests,
    cache_write_tokens)
SELECT stream, hour, model, channel, key, requests, errors, refused, input_tokens, cached_tokens,
    output_tokens, charged_upt, duration_ms, plan_requests, cache_write_tokens
FROM json_to_recordset(%(rows)s::json) AS i(stream text, hour integer, model text,
    channel bigint, key bigint, requests bigint, errors bigint, refused bigint,
    input_tokens bigint, cached_tokens bigint, output_tokens bigint, charged_upt bigint,
    duration_ms bigint, plan_requests bigint, cache_write_tokens bigint)
ORDER BY stream, hour, model, channel, key
ON CONFLICT (stream, hour, model, channel, key) DO UPDATE SET
    requests = u.requests + excluded.requests, errors = u.errors + excluded.errors,
    refused = u.refused + excluded.refused,
    input_tokens = u.input_tokens + excluded.input_tokens,
    cached_tokens = u.cached_tokens + excluded.cached_tokens,
    output_tokens = u.output_tokens + excluded.output_tokens,
    charged_upt = u.charged_upt + excluded.charged_upt,
    duration_ms = u.duration_ms + excluded.duration_ms,
    plan_requests = u.plan_requests + excluded.plan_requests,
    cache_write_tokens = u.cache_write_tokens + excluded.cache_write_tokens
"""

DROP_EMPTY: Final = """
DELETE FROM usage u
USING json_to_recordset(%(rows)s::json) AS i(stream text, hour integer)
WHERE u.stream = i.stream AND u.hour = i.hour AND u.requests = 0 AND u.charged_upt = 0
"""

NAME: Final = "usage"
TABLES: Final = ("usage", "usage_waiting")
TOPICS: Final = (LEDGER,)

_ENCODER: Final = msgspec.json.Encoder()


class UsageProjection:
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
        await _save_waiting(connection, rows)
        totals = rows.totals()
        if totals:
            given = {"rows": _ENCODER.encode(totals).decode()}
            await connection.execute(ADD, given)
            if any(isinstance(event, UsageLate) for _, event in facts):
                # What late usage moved to another channel leaves no empty row behind.
                await connection.execute(DROP_EMPTY, given)


def facts_of(batch: Sequence[Arrived]) -> list[tuple[Recorded, UsageFact]]:
    """The events of a batch that begin or end a request, with their rows."""
    return [
        (arrived.row, arrived.event)
        for arrived in of_accounts(batch)
        if isinstance(arrived.event, UsageFact)
    ]


async def _load(connection: Connection, facts: Sequence[tuple[Recorded, UsageFact]]) -> UsageRows:
    keys = dict.fromkeys((row.stream, event.request_id) for row, event in facts)
    stored = await fetch_all(connection, LOAD, {"keys": _keys(list(keys))})
    return UsageRows({(values[0], values[1]): Waiting(*values) for values in stored})


async def _save_waiting(connection: Connection, rows: UsageRows) -> None:
    waiting, gone = rows.now_waiting(), rows.gone()
    if gone:
        await connection.execute(FORGET_WAITING, {"keys": _keys(gone)})
    if waiting:
        await connection.execute(SAVE_WAITING, {"rows": _ENCODER.encode(waiting).decode()})


def _keys(keys: list[WaitingKey]) -> str:
    given = [{"stream": stream, "request_id": request_id} for stream, request_id in keys]
    return _ENCODER.encode(given).decode()
