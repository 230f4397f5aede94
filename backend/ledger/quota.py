"""When the period of a key's spending limit began. Pure; what was spent in it is in the account."""

from __future__ import annotations

from datetime import date
from typing import Final, assert_never

from schemas.identity import Reset

DAY_US: Final = 86_400_000_000
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_EPOCH_WEEKDAY: Final = 3
"""1970-01-01 was a Thursday; weeks begin on Monday (ISO 8601)."""


CLOCKS_DIFFER_US: Final = 3_600_000_000
"""How far the clocks of two processes may be apart: an hour is a fault of its own."""


def period_begun_us(period_us: int, counted_us: int, at_us: int) -> int:
    """The period to count in, where calls were last counted in the one from `counted_us` on.

    A clock that is behind must not go back to a period that has ended: its count would begin anew.
    """
    if period_us < counted_us <= at_us + CLOCKS_DIFFER_US:
        return counted_us
    return period_us


def quota_period_us(reset: Reset, at_us: int) -> int:
    """Start of the period that `at_us` lies in: microseconds since 1970, UTC; NEVER: 0."""
    day = at_us // DAY_US
    match reset:
        case Reset.NEVER:
            return 0
        case Reset.DAILY:
            return day * DAY_US
        case Reset.WEEKLY:
            return (day - (day + _EPOCH_WEEKDAY) % 7) * DAY_US
        case Reset.MONTHLY:
            first = date.fromordinal(_EPOCH_DAY + day).replace(day=1)
            return (first.toordinal() - _EPOCH_DAY) * DAY_US
        case _:
            assert_never(reset)
