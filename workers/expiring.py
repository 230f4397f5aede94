"""Notes the end of subscriptions whose time is over. Plans stop paying at that moment by
themselves: this only makes it an entry of the log.
"""

from __future__ import annotations

import asyncio
from typing import Final

from backend.kit.clock import Clock, Randomness
from backend.ledger.subscriptions import Lapsed, Subscriptions
from workers.rounds import Rounds

EVERY_S: Final = 60.0
PASS_TIMEOUT_S: Final = 60.0
PAGE_ACCOUNTS: Final = 200


class Expirer(Rounds):
    def __init__(
        self,
        subscriptions: Subscriptions,
        clock: Clock,
        randomness: Randomness,
        every_s: float = EVERY_S,
    ) -> None:
        super().__init__("expirer", every_s, PASS_TIMEOUT_S, randomness)
        self._subscriptions: Final = subscriptions
        self._clock: Final = clock
        self.expired = 0

    async def once(self) -> None:
        await self.expire()

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
