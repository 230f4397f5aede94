"""The billing routes that OpenAI clients know, answered from the ledger in USD at the site's
rate.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

from backend.journal.fold import Folds
from backend.journal.view import load_states
from backend.kit.postgres import Pool
from backend.ledger.account import Account
from backend.ledger.points import account_state
from backend.ledger.record_filters import ALWAYS_US, UsageFilter
from backend.ledger.usage_log import usage_totals
from schemas.money import POINTS_PER_CNY, UPT_PER_POINT, format_points

_MILLION: Final = 1_000_000
FOREVER_S: Final = 4_102_444_800
"""2100-01-01: points do not expire, and some clients insist on a date."""


def usd(amount_upt: int, cny_per_usd: Decimal, factor: int = 1) -> msgspec.Raw:
    """Dollars (times `factor`: 100 for cents) of micro-points, as a JSON number of six decimals.

    10 points are 1 CNY; the rate has six decimals at most. Integers all the way, rounded half up.
    """
    rate_millionths = int(cny_per_usd * _MILLION)
    per_million = UPT_PER_POINT * POINTS_PER_CNY * rate_millionths
    scaled = amount_upt * factor * _MILLION * _MILLION
    return msgspec.Raw(format_points((2 * scaled + per_million) // (2 * per_million)).encode())


class BillingDoor:
    """Reads an account's state and its usage; changes nothing."""

    def __init__(self, pool: Pool, folds: Folds, cny_per_usd: Decimal) -> None:
        self._pool: Final = pool
        self._folds: Final = folds
        self._cny_per_usd: Final = cny_per_usd

    async def usage(
        self, account: str, first_us: int | None, until_us: int | None
    ) -> dict[str, Any]:
        """`total_usage` in US cents: all time, or charged in [`first_us`, `until_us`)."""
        if first_us is None and until_us is None:
            charged_upt = (await self._state(account)).charged_upt
        else:
            async with self._pool.connection() as connection:
                wanted = UsageFilter(account, first_us or 0, until_us or ALWAYS_US)
                totals = await usage_totals(connection, wanted)
            charged_upt = totals.charged_upt
        return {"object": "list", "total_usage": usd(charged_upt, self._cny_per_usd, 100)}

    async def subscription(self, account: str) -> dict[str, Any]:
        """The limit is all that was ever granted: less `total_usage`, it is what is left."""
        limit = usd((await self._state(account)).issued_upt, self._cny_per_usd)
        return {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit": limit,
            "hard_limit": limit,
            "system_hard_limit": limit,
            "soft_limit_usd": limit,
            "hard_limit_usd": limit,
            "system_hard_limit_usd": limit,
            "access_until": FOREVER_S,
        }

    async def _state(self, account: str) -> Account:
        async with self._pool.connection() as connection:
            states = await load_states(connection, self._folds, [account])
        return account_state(states[account][1]) if account in states else Account()
