"""Notes the end of subscriptions whose time is over. Plans stop paying at that moment by
themselves: this only makes it an entry of the log.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import DatabaseError
from backend.kit.tasks import ended, vital
from backend.ledger.subscriptions import Lapsed, Subscriptions
from schemas.errors import SuanpanError

EVERY_S: Final = 60.0
PASS_TIMEOUT_S: Final = 60.0
PAGE_ACCOUNTS: Final = 200

_log = structlog.get_logger("workers.expiring")


class Expirer:
    """One task per process; several processes may be at it at once."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        clock: Clock,
        randomness: Randomness,
        every_s: float = EVERY_S,
    ) -> None:
        self._subscriptions: Final = subscriptions
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._every_s: Final = every_s
        self._task: asyncio.Task[None] | None = None
        self.expired = 0

    def start(self) -> None:
        self._task = vital(self._run(), "expirer")

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PASS_TIMEOUT_S):
                    await self.expire()
            except (DatabaseError, SuanpanError, OSError, TimeoutError) as error:
                _log.warning("expiring waits", error=type(error).__name__)
            # Spread: processes that were started together would all come at once.
            await asyncio.sleep(self._every_s * (0.75 + self._randomness.bits(16) / 2**17))

    async def expire(self) -> int:
        """One pass; how many ends it noted. Raises SuanpanError, OSError and psycopg errors."""
        now_us, count = self._clock.now_us(), 0
        last: Lapsed | None = None
        while page := await self._subscriptions.list_lapsed(now_us, last, PAGE_ACCOUNTS):
            # At once, so that they share appends; each is of another account.
            noted = await asyncio.gather(
                *(self._subscriptions.expire(lapsed.account) for lapsed in page)
            )
            count += sum(noted)
            self.expired += sum(noted)
            last = page[-1]
        return count
