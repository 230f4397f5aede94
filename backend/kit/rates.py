"""Counts amounts in calendar windows, and how many of something are open. Pure: time comes in.

Knows names and numbers; what is counted, and what happens at a limit, is its caller's matter.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

COUNTERS_MAX: Final = 50_000
ACTIVE_US: Final = 10_000_000
"""A counter that was not used for so long is exchanged no more until it is used again."""
OPEN_LIVES_US: Final = 10_000_000
"""What another process said it has open counts for so long: it may have died."""
WINDOW_KEPT_US: Final = 60_000_000
"""How long a window's count outlives its end: clocks of processes differ."""


class Period(msgspec.Struct, frozen=True):
    """A fixed window: `length_us` long, aligned to 1970-01-01T00:00:00Z."""

    word: str
    length_us: int


MINUTE: Final = Period("minute", 60_000_000)
DAY: Final = Period("day", 86_400_000_000)
"""The UTC day."""


class Counter:
    """What was counted under one name: by this process, and by others as last heard.

    With a period the count begins anew with each window; without one it is how many are open now.
    """

    __slots__ = (
        "field", "heard_us", "known", "name", "others", "own", "period", "said", "used_us",
        "window",
    )  # fmt: skip

    def __init__(self, name: str, period: Period | None, field: str) -> None:
        self.name: Final = name
        self.period: Final = period
        self.field: Final = field
        """Names this counter among those of all processes: none ever had the same."""
        self.window: int = 0
        self.own: int = 0
        self.others: int = 0
        self.said: int = 0
        """Our own count when others last heard of it."""
        self.known = False
        """Was the count of others ever read?"""
        self.heard_us = 0
        self.used_us = 0

    @property
    def unsaid(self) -> int:
        """How much of our own count others have not heard of."""
        return self.own - self.said

    def total(self, now_us: int) -> int:
        """The count of all processes, as far as this one knows."""
        self._turn(now_us)
        if self.period is None and now_us - self.heard_us > OPEN_LIVES_US:
            self.others = 0
        return self.own + self.others

    def add(self, amount: int, now_us: int) -> int:
        """Counts; a negative amount takes back. Returns the window it was counted in."""
        self._turn(now_us)
        self.own = max(0, self.own + amount)
        return self.window

    def correct(self, amount: int, window: int, now_us: int) -> None:
        """Changes what was counted in `window`: more counts now, less only if it still runs."""
        self._turn(now_us)
        if amount > 0 or window == self.window:
            self.own = max(0, self.own + amount)

    def resets_in_us(self, now_us: int) -> int:
        """From now to the end of the window; 0 for a count without a period."""
        if self.period is None:
            return 0
        self._turn(now_us)
        return (self.window + 1) * self.period.length_us - now_us

    def lives_us(self, now_us: int) -> int:
        """How long what we say to others is worth keeping."""
        if self.period is None:
            return OPEN_LIVES_US
        return self.resets_in_us(now_us) + WINDOW_KEPT_US

    def heard(self, others: int, window: int, said: int, now_us: int) -> None:
        """Others have counted so much in `window`, and now know that we had counted `said`."""
        self._turn(now_us)
        self.known = True
        if window == self.window:
            self.others, self.said, self.heard_us = others, said, now_us

    def _turn(self, now_us: int) -> None:
        if self.period is None:
            return
        window = now_us // self.period.length_us
        # A clock that is set back a little must not open a window a second time.
        if window in (self.window, self.window - 1):
            return
        self.window, self.own, self.others, self.said = window, 0, 0, 0


class Counters:
    """All counters of a process by name, bounded: the ones used longest ago are forgotten first.

    `field` prefixes the names of this process's fields: no other process, before or beside it, may
    have the same.
    """

    def __init__(self, field: str, count_max: int = COUNTERS_MAX) -> None:
        self._field: Final = field
        self._count_max: Final = count_max
        self._counters: OrderedDict[str, Counter] = OrderedDict()
        self._active: dict[str, Counter] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._counters)

    def use(self, name: str, period: Period | None, now_us: int) -> Counter:
        """The counter of a name, made where there is none."""
        counter = self._counters.get(name)
        if counter is None:
            self._made += 1
            counter = Counter(name, period, f"{self._field}.{self._made}")
            self._counters[name] = counter
            self._forget()
        else:
            self._counters.move_to_end(name)
        counter.used_us = now_us
        self._active[name] = counter
        return counter

    def active(self, now_us: int) -> list[Counter]:
        """Those to exchange with other processes: used lately, or with something open or unsaid."""
        for counter in list(self._active.values()):
            counter.total(now_us)  # a window that has ended leaves nothing unsaid
            is_open = counter.period is None and counter.own > 0
            if now_us - counter.used_us > ACTIVE_US and not counter.unsaid and not is_open:
                del self._active[counter.name]
        return list(self._active.values())

    def _forget(self) -> None:
        for _ in range(len(self._counters) - self._count_max):
            name, counter = self._counters.popitem(last=False)
            if counter.period is None and counter.own:
                self._counters[name] = counter  # something is open: it will be closed here
            else:
                self._active.pop(name, None)
