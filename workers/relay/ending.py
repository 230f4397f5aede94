"""Ends a call: exactly one outcome, committed before the last byte leaves; the spool when it
cannot be.
"""

from __future__ import annotations

from typing import Final

import structlog

from backend.kit.clock import Clock
from backend.kit.postgres import DatabaseError
from backend.kit.tokenizer import Tokenizer
from backend.ledger.decide import SettleAsked
from backend.ledger.leases import LeaseKeeper
from backend.ledger.points import Charged, Points
from backend.ledger.spool import Spool
from schemas.errors import SettlementPending, Unavailable
from schemas.ledger import ReleaseReason
from schemas.usage import Basis, Usage
from workers.relay.run import Run

NOT_RECORDED: Final = (
    "The answer was made, but its charge cannot be recorded now; it will be as soon as the "
    "ledger's database answers."
)

_log = structlog.get_logger("relay.ending")


class Ending:
    """Shared by all calls of a process."""

    def __init__(
        self, points: Points, leases: LeaseKeeper, spool: Spool, tokenizer: Tokenizer, clock: Clock
    ) -> None:
        self._points: Final = points
        self._leases: Final = leases
        self._spool: Final = spool
        self._tokenizer: Final = tokenizer
        self._clock: Final = clock

    async def settle_complete(self, run: Run, status: int) -> Charged:
        """The answer is whole: the provider's own numbers, else our count."""
        if run.usage is not None:
            return await self._settle(run, run.usage, Basis.REPORTED, status, None)
        return await self.settle_counted(run, status, None)

    async def settle_counted(self, run: Run, status: int, error: str | None) -> Charged:
        """Input and what was received of the output, counted by our tokenizer."""
        usage = await run.count(self._tokenizer)
        return await self._settle(run, usage, Basis.COUNTED, status, error)

    async def release(self, run: Run, reason: ReleaseReason, status: int, error: str) -> None:
        """The call costs nothing. Where Postgres does not answer, the sweep does it later."""
        served = run.served(status, self._clock.monotonic_s(), error)
        try:
            await self._points.release(run.call.account, run.call.request_id, reason, served)
        except Unavailable:
            _log.warning("release left to the sweep", request_id=run.call.request_id)
        finally:
            self._leases.drop(run.call.request_id)

    async def _settle(
        self, run: Run, usage: Usage, basis: Basis, status: int, error: str | None
    ) -> Charged:
        if run.call.meter is not None:
            run.call.meter.used(usage)
        asked = SettleAsked(
            request_id=run.call.request_id,
            usage=usage,
            basis=basis,
            price=run.offer.price,
            price_ref=run.offer.price_ref,
            served=run.served(status, self._clock.monotonic_s(), error),
            terms=run.terms,
            plan=run.plan,
            key=run.call.key.key,
            quota=run.quota,
        )
        try:
            return await self._points.settle(run.call.account, asked)
        except (Unavailable, DatabaseError) as cause:
            await self._keep(run, asked)
            raise SettlementPending(NOT_RECORDED) from cause
        finally:
            self._leases.drop(run.call.request_id)

    async def _keep(self, run: Run, asked: SettleAsked) -> None:
        try:
            await self._spool.put(run.call.account, asked)
        except OSError as error:
            # The sweep will end it by the last progress that the lease has.
            _log.error("settlement not spooled", request_id=asked.request_id, error=str(error))
