"""`balance`: what each account has, at which version of its stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from projections.accounts import AccountStates, of_accounts, streams_of
from projections.balance.rows import BalanceRow, row_of
from projections.target import Schema, consumer_name, enter
from schemas.event import LEDGER
from schemas.ledger import (
    AccountOpened,
    GiftTaken,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanExpired,
    PlanRenewed,
    PointsCorrected,
    PointsGranted,
    PointsHeld,
    RequestRefused,
    ShortfallRecorded,
    UsageLate,
)

HANDLERS: Final[dict[type[Any], Any]] = {
    AccountOpened: AccountStates.fold,
    PointsGranted: AccountStates.fold,
    PointsCorrected: AccountStates.fold,
    PointsHeld: AccountStates.fold,
    HoldExtended: AccountStates.fold,
    HoldSettled: AccountStates.fold,
    HoldReleased: AccountStates.fold,
    ShortfallRecorded: AccountStates.fold,
    UsageLate: AccountStates.fold,
    RequestRefused: AccountStates.fold,
    GiftTaken: AccountStates.fold,
    PlanBought: AccountStates.fold,
    PlanRenewed: AccountStates.fold,
    PlanChanged: AccountStates.fold,
    PlanExpired: AccountStates.fold,
    InvitationRewarded: AccountStates.fold,
}
"""Every event of an account goes through the ledger's own fold, so both say the same."""

LOAD: Final = "SELECT stream, state FROM balance WHERE stream = ANY(%(streams)s)"
SAVE: Final = """
INSERT INTO balance AS b (stream, person, issued_upt, charged_upt, posted_upt, held_upt,
    available_upt, shortfall_upt, open_holds, version, hash, at_us, state, plan_level,
    plan_until_us, plan_used)
SELECT stream, person, issued_upt, charged_upt, posted_upt, held_upt, available_upt,
    shortfall_upt, open_holds, version, decode(hash, 'hex'), at_us, state, plan_level,
    plan_until_us, plan_used
FROM json_to_recordset(%(rows)s::json) AS i(stream text, person bigint, issued_upt bigint,
    charged_upt bigint, posted_upt bigint, held_upt bigint, available_upt bigint,
    shortfall_upt bigint, open_holds integer, version bigint, hash text, at_us bigint, state text,
    plan_level smallint, plan_until_us bigint, plan_used text)
ORDER BY stream
ON CONFLICT (stream) DO UPDATE SET person = excluded.person, issued_upt = excluded.issued_upt,
    charged_upt = excluded.charged_upt, posted_upt = excluded.posted_upt,
    held_upt = excluded.held_upt, available_upt = excluded.available_upt,
    shortfall_upt = excluded.shortfall_upt, open_holds = excluded.open_holds,
    version = excluded.version, hash = excluded.hash, at_us = excluded.at_us,
    state = excluded.state, plan_level = excluded.plan_level,
    plan_until_us = excluded.plan_until_us, plan_used = excluded.plan_used
"""

NAME: Final = "balance"
TABLES: Final = ("balance",)
TOPICS: Final = (LEDGER,)

_ENCODER: Final = msgspec.json.Encoder()


class BalanceProjection:
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
        stored = await fetch_all(connection, LOAD, {"streams": streams_of(ours)})
        states = AccountStates((stream, state) for stream, state in stored)
        last: dict[str, Arrived] = {}
        for arrived in ours:
            HANDLERS[type(arrived.event)](states, arrived)
            last[arrived.row.stream] = arrived
        rows = [row_of(states.of(stream), arrived) for stream, arrived in last.items()]
        await self._save(connection, rows)

    async def _save(self, connection: Connection, rows: list[BalanceRow]) -> None:
        await connection.execute(SAVE, {"rows": _ENCODER.encode(rows).decode()})
