"""The fold of a `price:` stream: every version that counts now or later. Pure.

Of all versions that have begun, the newest one counts; what can never count again is dropped.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.catalog import PriceSet
from schemas.prices import Price

SCHEDULED_MAX: Final = 50
"""Versions that a stream keeps at most; decisions refuse more."""


class ScheduledPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    price: Price
    from_us: int = 0
    """Microseconds since 1970; 0: since it was recorded."""


class ModelPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The newest version, and the older ones that count until it does.

    A state that was stored before prices had a time has `price` alone, and so has every state
    whose newest version counts at once: the same history gives the same bytes.
    """

    price: Price | None = None
    """The newest version's, which is the stream's. None: never priced."""
    from_us: int = 0
    earlier: tuple[ScheduledPrice, ...] = ()
    """By rising version and rising time; only the first one has begun, if any has."""

    def schedule(self, version: int) -> tuple[ScheduledPrice, ...]:
        """Every version that counts now or later, by rising time; `version` is the stream's."""
        if self.price is None:
            return ()
        return (*self.earlier, ScheduledPrice(version, self.price, self.from_us))


def price_at(state: ModelPrice, version: int, at_us: int) -> ScheduledPrice | None:
    """The version that counts at a time after the last event; None: none has begun."""
    begun = (one for one in reversed(state.schedule(version)) if one.from_us <= at_us)
    return next(begun, None)


def timetable(state: ModelPrice, at_us: int) -> tuple[tuple[int, Price], ...]:
    """(from when, price) of what counts at that time (from 0) and later; a version that changes
    nothing is left out. Two states with equal timetables cost the same from then on.
    """
    rows: list[tuple[int, Price]] = []
    for one in state.schedule(0):
        if one.from_us <= at_us:
            rows = [(0, one.price)]
        elif not rows or rows[-1][1] != one.price:
            rows.append((one.from_us, one.price))
    return tuple(rows)


def apply(state: ModelPrice, event: Any, version: int, at_us: int) -> ModelPrice:
    """The schedule after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, PriceSet):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a price")
    from_us = event.effective_us if event.effective_us > at_us else 0
    begins_us = max(from_us, at_us)
    # A version counts again only before the new one begins; of those that have begun by now, only
    # the newest one does.
    later = [one for one in state.schedule(version - 1) if one.from_us < begins_us]
    begun = [one for one in later if one.from_us <= at_us][-1:] if from_us else []
    waiting = [one for one in later if one.from_us > at_us]
    return ModelPrice(event.price, from_us, (*begun, *waiting))


PRICE: Final = Fold("price", ModelPrice(), apply)
