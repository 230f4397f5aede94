"""What the log says was used at a provider, per period of its bill and upstream model.

Pure. Beside the sums it keeps how far the provider may rightly differ, and because of which
requests: at a period's edge, counted by our tokenizer, left, swept or given up. Memory is bounded
by periods × models, open holds, and requests that a sweep ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from heapq import heappush, heappushpop
from typing import Final
from uuid import UUID

import msgspec

from projections.reconcile.bill import Period
from schemas.event import Recorded
from schemas.ids import ChannelId, kind_of
from schemas.ledger import (
    HoldReleased,
    HoldSettled,
    PointsHeld,
    ReleaseReason,
    Served,
    UsageLate,
)
from schemas.registry import decode
from schemas.usage import Basis, Usage

IDS_MAX: Final = 10
SLACK_US: Final = 5_000_000
"""How far the provider's clock and ours may be apart."""
COUNTED_FACTOR: Final = 2
"""Our tokenizer may be wrong by this factor, either way, about another vendor's model."""
BILLABLE: Final = frozenset(
    {
        ReleaseReason.UPSTREAM_ERROR,
        ReleaseReason.UPSTREAM_TIMEOUT,
        ReleaseReason.UPSTREAM_CUT,
        ReleaseReason.CLIENT_LEFT,
        ReleaseReason.SWEPT,
    }
)
"""Releases of requests that the provider may have answered, and billed, all the same."""
TYPES: Final = frozenset({"PointsHeld", "HoldSettled", "HoldReleased", "UsageLate"})


class Cause(StrEnum):
    """Why the provider may have counted otherwise."""

    EDGE = "edge"
    COUNTED = "counted"
    LOST = "lost"
    """The client left, a sweep ended it, it was given up or tried again: what was used is not
    known."""


class Count(msgspec.Struct, frozen=True, gc=False):
    """Requests, and tokens in disjoint parts."""

    requests: int = 0
    uncached: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0

    def plus(self, other: Count) -> Count:
        return Count(
            self.requests + other.requests,
            self.uncached + other.uncached,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            self.output + other.output,
        )

    def negated(self) -> Count:
        return Count(-self.requests, -self.uncached, -self.cached, -self.cache_write, -self.output)

    @property
    def tokens(self) -> int:
        return self.uncached + self.cached + self.cache_write + self.output


class Named:
    """The requests with the most tokens, at most IDS_MAX."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []

    def add(self, request_id: str, tokens: int) -> None:
        if len(self._heap) < IDS_MAX:
            heappush(self._heap, (tokens, request_id))
        else:
            heappushpop(self._heap, (tokens, request_id))

    def take(self, other: Named) -> None:
        for tokens, request_id in other._heap:
            self.add(request_id, tokens)

    def ids(self) -> list[tuple[int, str]]:
        """(tokens, request id), the largest first."""
        return sorted(self._heap, key=lambda item: (-item[0], item[1]))


class Spread:
    """How far the provider's counts may lie from ours for one cause: [low, high] around ours."""

    __slots__ = ("high", "low", "named", "requests")

    def __init__(self) -> None:
        self.low = Count()
        self.high = Count()
        self.requests = 0
        self.named = Named()

    def add(self, request_id: str, low: Count, high: Count) -> None:
        self.low, self.high = self.low.plus(low), self.high.plus(high)
        self.requests += 1
        self.named.add(request_id, high.tokens - low.tokens)

    def take(self, other: Spread) -> None:
        self.low, self.high = self.low.plus(other.low), self.high.plus(other.high)
        self.requests += other.requests
        self.named.take(other.named)


class Cell:
    """All that we say of one model in one period."""

    __slots__ = ("charged_upt", "count", "named", "spreads")

    def __init__(self) -> None:
        self.count = Count()
        self.charged_upt = 0
        """What the users were charged for it, micro-points."""
        self.spreads: dict[Cause, Spread] = {}
        self.named = Named()

    def spread(self, cause: Cause) -> Spread:
        return self.spreads.setdefault(cause, Spread())

    def take(self, other: Cell) -> None:
        self.count = self.count.plus(other.count)
        self.charged_upt += other.charged_upt
        self.named.take(other.named)
        for cause, spread in other.spreads.items():
            self.spread(cause).take(spread)


class _Open(msgspec.Struct, frozen=True, gc=False):
    at_us: int
    model: str
    channels: tuple[ChannelId, ...]
    input_bound: int
    output_bound: int


class _Ended(msgspec.Struct, frozen=True):
    """A request that may have reached the provider."""

    request_id: str
    begun: _Open
    ended_us: int
    served: Served
    usage: Usage
    basis: Basis
    charged_upt: int
    swept: bool = False
    released: bool = False


class OurUsage:
    """`feed` takes the log's pages in order; `finish` when all have passed.

    `periods` are sorted and apart; `channels` are those that lead to the provider.
    """

    def __init__(self, periods: Sequence[Period], channels: frozenset[ChannelId]) -> None:
        self._periods: Final = tuple(periods)
        self._starts: Final = [period.from_us for period in periods]
        self._channels: Final = channels
        self._open: Final[dict[str, _Open]] = {}
        self._swept: Final[dict[UUID, _Ended]] = {}
        self._cells: Final[dict[tuple[int, str], Cell]] = {}

    def feed(self, page: Sequence[Recorded]) -> None:
        """Raises UndecodableEvent."""
        for row in page:
            if row.type in TYPES and kind_of(row.stream) == "account":
                self._take(row)

    def finish(self) -> dict[tuple[int, str], Cell]:
        """By index of the period and upstream model."""
        for ended in self._swept.values():
            self._count(ended)
        self._swept.clear()
        return self._cells

    def _take(self, row: Recorded) -> None:
        match decode(row):
            case PointsHeld() as event:
                self._open[event.request_id] = _Open(
                    row.at_us, event.model, event.channels, event.input_bound, event.output_bound
                )
            case HoldSettled() as event:
                ended = self._settled(row, event)
                if event.swept:
                    self._swept[row.event_id] = ended
                else:
                    self._count(ended)
            case HoldReleased() as event:
                ended = self._released(row, event)
                if event.reason is ReleaseReason.SWEPT:
                    self._swept[row.event_id] = ended
                elif event.reason in BILLABLE and event.served.attempts > 0:
                    self._count(ended)
            case UsageLate() as event:
                before = self._swept.pop(event.sweep_event_id, None)
                begun = self._begun(row, event.request_id, event.price.model, event.served)
                self._count(
                    _Ended(
                        event.request_id,
                        begun if before is None else before.begun,
                        row.at_us if before is None else before.ended_us,
                        event.served,
                        event.usage,
                        event.basis,
                        event.amount_upt + (0 if before is None else before.charged_upt),
                    )
                )
            case _:
                pass

    def _settled(self, row: Recorded, event: HoldSettled) -> _Ended:
        begun = self._begun(row, event.request_id, event.price.model, event.served)
        return _Ended(
            event.request_id,
            begun,
            row.at_us,
            event.served,
            event.usage,
            event.basis,
            event.amount_upt,
            swept=event.swept,
        )

    def _released(self, row: Recorded, event: HoldReleased) -> _Ended:
        begun = self._begun(row, event.request_id, "", event.served)
        return _Ended(
            event.request_id,
            begun,
            row.at_us,
            event.served,
            Usage(),
            Basis.NONE,
            0,
            swept=event.reason is ReleaseReason.SWEPT,
            released=True,
        )

    def _begun(self, row: Recorded, request_id: str, model: str, served: Served) -> _Open:
        """The request's hold, which ends here; else what the outcome lets one know of it."""
        found = self._open.pop(request_id, None)
        return found or _Open(row.at_us - served.duration_ms * 1_000, model, (), 0, 0)

    def _count(self, ended: _Ended) -> None:
        if not self._leads_there(ended):
            return
        model = ended.served.upstream_model or ended.begun.model
        home = self._home(ended.ended_us)
        count = _count_of(ended)
        cause, low, high = _doubt(ended, count)
        if home is not None:
            cell = self._cell(home, model)
            cell.count = cell.count.plus(count)
            cell.charged_upt += ended.charged_upt
            cell.named.add(ended.request_id, count.tokens)
            if cause is not None:
                cell.spread(cause).add(ended.request_id, low, high)
        touched = self._touched(ended, home)
        if touched and home is not None:
            # All of it may stand in the period beside.
            edge = self._cell(home, model).spread(Cause.EDGE)
            edge.add(ended.request_id, count.negated(), Count())
        for beside in touched:
            most = count.plus(high)
            self._cell(beside, model).spread(Cause.EDGE).add(ended.request_id, Count(), most)

    def _leads_there(self, ended: _Ended) -> bool:
        channel = ended.served.channel
        if channel is not None:
            return channel in self._channels
        # A sweep may not know where the request had gone.
        return ended.swept and any(one in self._channels for one in ended.begun.channels)

    def _home(self, at_us: int) -> int | None:
        index = bisect_right(self._starts, at_us) - 1
        return index if index >= 0 and at_us < self._periods[index].to_us else None

    def _touched(self, ended: _Ended, home: int | None) -> list[int]:
        """Other periods that the request's time, give or take the clocks, reaches into."""
        begin_us = min(ended.begun.at_us, ended.ended_us) - SLACK_US
        end_us = ended.ended_us + SLACK_US
        first = max(0, bisect_right(self._starts, begin_us) - 1)
        last = bisect_right(self._starts, end_us)
        return [
            index
            for index in range(first, last)
            if index != home and self._periods[index].to_us > begin_us
        ]

    def _cell(self, period: int, model: str) -> Cell:
        cell = self._cells.get((period, model))
        if cell is None:
            cell = self._cells[(period, model)] = Cell()
        return cell


def _count_of(ended: _Ended) -> Count:
    usage = ended.usage
    return Count(
        0 if ended.released else 1,
        usage.input,
        usage.cached_input,
        usage.cache_write + usage.cache_write_1h,
        usage.output,
    )


def _doubt(ended: _Ended, count: Count) -> tuple[Cause | None, Count, Count]:
    """Why the provider may have counted this request otherwise, and how far below and above."""
    known_input = count.uncached + count.cached + count.cache_write
    input_most = max(ended.begun.input_bound, known_input * COUNTED_FACTOR)
    output_most = max(ended.begun.output_bound, count.output * COUNTED_FACTOR)
    lost = Count(
        1,
        max(0, input_most - count.uncached),
        max(0, input_most - count.cached),
        max(0, input_most - count.cache_write),
        max(0, output_most - count.output),
    )
    if ended.released:
        return Cause.LOST, Count(), lost
    unheard = msgspec.structs.replace(lost, requests=0)
    if ended.swept:
        return Cause.LOST, count.negated(), unheard
    if ended.basis is Basis.REPORTED:
        more = ended.served.attempts - 1
        if more <= 0:
            return None, Count(), Count()
        # An attempt before the one that answered may have been billed as well.
        high = Count(more, input_most * more, input_most * more, input_most * more,
                     output_most * more)  # fmt: skip
        return Cause.LOST, Count(), high
    if ended.basis is Basis.COUNTED and ended.served.status == 0:
        return Cause.LOST, _at_least_half(count), unheard
    if ended.basis is Basis.NONE:
        return Cause.COUNTED, Count(), unheard
    doubled = known_input * COUNTED_FACTOR
    high = Count(
        0,
        doubled - count.uncached,
        doubled - count.cached,
        doubled - count.cache_write,
        count.output * (COUNTED_FACTOR - 1),
    )
    return Cause.COUNTED, _at_least_half(count), high


def _at_least_half(count: Count) -> Count:
    """Which part of the input was cached is not counted, so each part may be none of it."""
    return Count(
        0, -count.uncached, -count.cached, -count.cache_write, -(count.output // COUNTED_FACTOR)
    )
