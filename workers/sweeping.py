"""Ends requests whose process died: settles what they last said, or releases. Once, and by lease.

A sweep lands only for the generation it saw, and only once the database's clock says it ran out.
"""

from __future__ import annotations

from typing import Final

import structlog

from backend.catalog.price_history import PriceHistory
from backend.journal.commands import Decision, LeaseSweep
from backend.journal.fold import Folds
from backend.journal.view import load_states
from backend.kit.postgres import Pool
from backend.ledger.account import Account, Hold
from backend.ledger.decide import SettleAsked, decide_release, decide_settle
from backend.ledger.leases import Expired, find_expired, forget_strays
from backend.ledger.points import Points
from backend.ledger.spool import Spool
from schemas.errors import SuanpanError
from schemas.ids import RequestId
from schemas.ledger import ReleaseReason, Served
from schemas.prices import PriceRef
from schemas.usage import Basis, Usage
from workers.rounds import Rounds

SWEEP_BATCH_MAX: Final = 200
PASS_TIMEOUT_S: Final = 30.0

_log = structlog.get_logger("workers.sweeping")


class Sweeper(Rounds):
    def __init__(
        self,
        pool: Pool,
        folds: Folds,
        points: Points,
        prices: PriceHistory,
        spool: Spool,
        every_s: float,
    ) -> None:
        super().__init__("sweeper", every_s, PASS_TIMEOUT_S)
        self._pool: Final = pool
        self._folds: Final = folds
        self._points: Final = points
        self._prices: Final = prices
        self._spool: Final = spool
        self.swept = 0

    async def once(self) -> None:
        await self._spool.replay(self._points)
        await self.sweep()

    async def sweep(self) -> int:
        """One pass; returns how many requests it ended."""
        async with self._pool.connection() as connection:
            expired = await find_expired(connection, SWEEP_BATCH_MAX)
            states = await load_states(
                connection, self._folds, list({lease.account for lease in expired})
            )
        ended = 0
        strays: list[RequestId] = []
        for lease in expired:
            state = states.get(lease.account, (0, Account()))[1]
            hold = state.holds.get(lease.request_id)
            if hold is None:
                # The state was read after the lease: the request has ended, whoever ended it.
                strays.append(lease.request_id)
            elif await self._ended(lease, hold):
                ended += 1
        if strays:
            async with self._pool.connection() as connection:
                await forget_strays(connection, strays)
        self.swept += ended
        return ended

    async def _ended(self, lease: Expired, hold: Hold) -> bool:
        """One that cannot be ended waits for the next pass, and the others do not wait for it."""
        try:
            return await self._end(lease, hold)
        except (SuanpanError, ValueError) as error:
            _log.error("not swept", request_id=lease.request_id, error=type(error).__name__)
            return False

    async def _end(self, lease: Expired, hold: Hold) -> bool:
        guard = LeaseSweep(lease.request_id, lease.generation)
        served = Served(
            channel=lease.progress.channel,
            upstream_model=lease.progress.upstream_model,
            error="interrupted",
        )
        if not lease.progress.begun:

            def release(state: Account) -> Decision:
                return decide_release(state, lease.request_id, ReleaseReason.SWEPT, served, guard)

            return await self._points.sweep(lease.account, lease.request_id, release)
        asked = SettleAsked(
            request_id=lease.request_id,
            usage=Usage(
                input=lease.progress.input,
                cached_input=lease.progress.cached_input,
                cache_write=lease.progress.cache_write,
                cache_write_1h=lease.progress.cache_write_1h,
                output=lease.progress.output,
            ),
            basis=Basis.COUNTED,
            price=await self._prices.price_at(hold.model, hold.price_version),
            price_ref=PriceRef(hold.model, hold.price_version),
            served=served,
        )

        def settle(state: Account) -> Decision:
            return decide_settle(state, asked, guard)

        return await self._points.sweep(lease.account, lease.request_id, settle)
