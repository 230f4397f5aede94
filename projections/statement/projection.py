"""`statement`: one line per movement of posted points, with the balance after it.

A settle of nothing moves nothing: such requests are seen in `requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from backend.ledger.account import ACCOUNT, Account
from projections.accounts import AccountStates, of_accounts, streams_of
from projections.statement.rows import (
    AccountRow,
    Entry,
    StatementRow,
    corrected,
    granted,
    late,
    row_of,
    settled,
)
from projections.target import Schema, consumer_name, enter
from schemas.event import LEDGER
from schemas.ledger import HoldSettled, PointsCorrected, PointsGranted, UsageLate

HANDLERS: Final[dict[type[Any], Callable[[Account, Any], Entry]]] = {
    PointsGranted: granted,
    HoldSettled: settled,
    PointsCorrected: corrected,
    UsageLate: late,
}
"""The events that move posted points; every other event of an account only goes into its state."""

LOAD: Final = "SELECT stream, state FROM statement_accounts WHERE stream = ANY(%(streams)s)"
SAVE_ACCOUNTS: Final = """
INSERT INTO statement_accounts (stream, state)
SELECT stream, state FROM json_to_recordset(%(rows)s::json) AS i(stream text, state text)
ORDER BY stream ON CONFLICT (stream) DO UPDATE SET state = excluded.state
"""
ADD: Final = """
INSERT INTO statement (stream, version, kind, amount_upt, balance_upt, at_us, event_id,
    command_id, shard, request_id, model, price_model, price_version, basis, swept, grant_kind,
    actor, explains_event_id)
SELECT stream, version, kind, amount_upt, balance_upt, at_us, event_id, command_id, shard,
    request_id, model, price_model, price_version, basis, swept, grant_kind, actor,
    explains_event_id
FROM json_to_recordset(%(rows)s::json) AS i(stream text, version bigint, kind text,
    amount_upt bigint, balance_upt bigint, at_us bigint, event_id uuid, command_id uuid,
    shard smallint, request_id uuid, model text, price_model text, price_version bigint,
    basis text, swept boolean, grant_kind text, actor text, explains_event_id uuid)
"""

NAME: Final = "statement"
TABLES: Final = ("statement", "statement_accounts")
TOPICS: Final = (LEDGER,)

_ENCODER: Final = msgspec.json.Encoder()


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
        stored = await fetch_all(connection, LOAD, {"streams": streams})
        states = AccountStates((stream, state) for stream, state in stored)
        lines = lines_of(states, ours)
        accounts = [
            AccountRow(stream, msgspec.Raw(ACCOUNT.encode(states.of(stream)))) for stream in streams
        ]
        await connection.execute(SAVE_ACCOUNTS, {"rows": _ENCODER.encode(accounts).decode()})
        if lines:
            await connection.execute(ADD, {"rows": _ENCODER.encode(lines).decode()})


def lines_of(states: AccountStates, batch: Sequence[Arrived]) -> list[StatementRow]:
    """The lines that events of accounts write, in order; `states` is folded along."""
    lines: list[StatementRow] = []
    for arrived in batch:
        before = states.of(arrived.row.stream)
        after = states.fold(arrived)
        handler = HANDLERS.get(type(arrived.event))
        if handler is None:
            continue
        entry = handler(before, arrived.event)
        if entry.amount_upt != 0:
            lines.append(row_of(entry, arrived.row, after.posted_upt))
    return lines
