"""`statement`: one line per movement of posted points, with the balance after it.

What moves nothing has no line: such requests are seen in `requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from backend.ledger.account import ACCOUNT
from projections.accounts import AccountStates, of_accounts, streams_of
from projections.statement.rows import (
    AccountRow,
    Before,
    Entry,
    StatementRow,
    Swept,
    bought,
    changed,
    corrected,
    gifted,
    granted,
    late,
    renewed,
    rewarded,
    row_of,
    settled,
    swept_by,
)
from projections.target import Schema, consumer_name, enter
from schemas.event import LEDGER
from schemas.ledger import (
    GiftTaken,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanRenewed,
    PointsCorrected,
    PointsGranted,
    UsageLate,
)

HANDLERS: Final[dict[type[Any], Callable[[Before, Any], Entry]]] = {
    PointsGranted: granted,
    GiftTaken: gifted,
    InvitationRewarded: rewarded,
    PlanBought: bought,
    PlanRenewed: renewed,
    PlanChanged: changed,
    HoldSettled: settled,
    PointsCorrected: corrected,
    UsageLate: late,
}
"""The events that move posted points; every other event of an account only goes into its state."""

LOAD: Final = "SELECT stream, state FROM statement_accounts WHERE stream = ANY(%(streams)s)"
LOAD_SWEPT: Final = """
SELECT s.stream, s.request_id::text, s.key, s.model
FROM json_to_recordset(%(keys)s::json) AS k(stream text, request_id uuid)
JOIN statement_swept s ON s.stream = k.stream AND s.request_id = k.request_id
"""
SAVE_ACCOUNTS: Final = """
INSERT INTO statement_accounts (stream, state)
SELECT stream, state FROM json_to_recordset(%(rows)s::json) AS i(stream text, state text)
ORDER BY stream ON CONFLICT (stream) DO UPDATE SET state = excluded.state
"""
SAVE_SWEPT: Final = """
INSERT INTO statement_swept (stream, request_id, key, model)
SELECT stream, request_id, key, model FROM json_to_recordset(%(rows)s::json)
    AS i(stream text, request_id uuid, key bigint, model text)
ORDER BY stream, request_id
"""
FORGET_SWEPT: Final = """
DELETE FROM statement_swept s
USING json_to_recordset(%(keys)s::json) AS k(stream text, request_id uuid)
WHERE s.stream = k.stream AND s.request_id = k.request_id
"""
ADD: Final = """
INSERT INTO statement (stream, version, kind, amount_upt, balance_upt, at_us, event_id,
    command_id, shard, request_id, model, price_model, price_version, basis, swept, grant_kind,
    actor, explains_event_id, key, channel, source, gift_type, plan_level, plan_version,
    plan_months, credit_upt)
SELECT stream, version, kind, amount_upt, balance_upt, at_us, event_id, command_id, shard,
    request_id, model, price_model, price_version, basis, swept, grant_kind, actor,
    explains_event_id, key, channel, source, gift_type, plan_level, plan_version, plan_months,
    credit_upt
FROM json_to_recordset(%(rows)s::json) AS i(stream text, version bigint, kind text,
    amount_upt bigint, balance_upt bigint, at_us bigint, event_id uuid, command_id uuid,
    shard smallint, request_id uuid, model text, price_model text, price_version bigint,
    basis text, swept boolean, grant_kind text, actor text, explains_event_id uuid, key bigint,
    channel bigint, source text, gift_type text, plan_level integer, plan_version bigint,
    plan_months integer, credit_upt bigint)
"""

NAME: Final = "statement"
TABLES: Final = ("statement", "statement_accounts", "statement_swept")
TOPICS: Final = (LEDGER,)

_ENCODER: Final = msgspec.json.Encoder()


class StatementStates(AccountStates):
    """Accounts as they stand, and the swept requests among theirs whose usage may still come."""

    def __init__(self, stored: Iterable[tuple[str, str]] = (), swept: Iterable[Swept] = ()) -> None:
        super().__init__(stored)
        self._stored: Final = {(one.stream, one.request_id): one for one in swept}
        self._swept: Final = dict(self._stored)

    def note(self, swept: Swept) -> None:
        self._swept[(swept.stream, swept.request_id)] = swept

    def take(self, stream: str, request_id: str) -> Swept | None:
        return self._swept.pop((stream, request_id), None)

    def new(self) -> list[Swept]:
        return [one for key, one in self._swept.items() if key not in self._stored]

    def gone(self) -> list[tuple[str, str]]:
        return [key for key in self._stored if key not in self._swept]


class StatementProjection:
    """A `Consumer` of the ledger."""

    def __init__(self, schema: Schema = Schema.READ) -> None:
        self._schema: Final = schema
        self.name: Final = consumer_name(NAME, schema)
        self.topics: Final = TOPICS

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        """Raises ValueError where an event cannot follow the account's history."""
        await enter(connection, self._schema)
        ours = of_accounts(batch)
        if not ours:
            return
        streams = streams_of(ours)
        states = await _load(connection, streams, ours)
        lines = lines_of(states, ours)
        accounts = [
            AccountRow(stream, msgspec.Raw(ACCOUNT.encode(states.of(stream)))) for stream in streams
        ]
        await connection.execute(SAVE_ACCOUNTS, {"rows": _ENCODER.encode(accounts).decode()})
        if gone := states.gone():
            await connection.execute(FORGET_SWEPT, {"keys": _keys(gone)})
        if new := states.new():
            await connection.execute(SAVE_SWEPT, {"rows": _ENCODER.encode(new).decode()})
        if lines:
            await connection.execute(ADD, {"rows": _ENCODER.encode(lines).decode()})


async def _load(
    connection: Connection, streams: list[str], batch: Sequence[Arrived]
) -> StatementStates:
    stored = await fetch_all(connection, LOAD, {"streams": streams})
    lates = [
        (arrived.row.stream, arrived.event.request_id)
        for arrived in batch
        if isinstance(arrived.event, UsageLate)
    ]
    # Seldom: most batches hold none.
    found = await fetch_all(connection, LOAD_SWEPT, {"keys": _keys(lates)}) if lates else []
    return StatementStates(
        ((stream, state) for stream, state in stored), (Swept(*values) for values in found)
    )


def _keys(keys: Sequence[tuple[str, str]]) -> str:
    given = [{"stream": stream, "request_id": request_id} for stream, request_id in keys]
    return _ENCODER.encode(given).decode()


def lines_of(states: StatementStates, batch: Sequence[Arrived]) -> list[StatementRow]:
    """The lines that events of accounts write, in order; `states` is folded along."""
    lines: list[StatementRow] = []
    for arrived in batch:
        stream, event = arrived.row.stream, arrived.event
        before = states.of(stream)
        after = states.fold(arrived)
        swept = swept_by(stream, before, event)
        if swept is not None:
            states.note(swept)
        handler = HANDLERS.get(type(event))
        if handler is None:
            continue
        known = states.take(stream, event.request_id) if isinstance(event, UsageLate) else None
        entry = handler(Before(before, known), event)
        if entry.amount_upt != 0:
            lines.append(row_of(entry, arrived.row, after.posted_upt))
    return lines
