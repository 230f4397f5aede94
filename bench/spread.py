"""Percentiles of what was measured, in milliseconds."""

from __future__ import annotations

from array import array
from typing import Final

import msgspec

SAMPLES_MAX: Final = 2_000_000


class Spread(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles; zeros where nothing was measured (`count` says so)."""

    count: int = 0
    p50_ms: float = 0
    p90_ms: float = 0
    p99_ms: float = 0
    max_ms: float = 0


class Samples:
    """Durations in nanoseconds, bounded in number: what comes after the bound is not kept."""

    def __init__(self) -> None:
        self._ns = array("q")

    def add(self, duration_ns: int) -> None:
        if len(self._ns) < SAMPLES_MAX:
            self._ns.append(duration_ns)

    def clear(self) -> None:
        self._ns = array("q")

    def spread(self) -> Spread:
        return spread_of(self._ns)


def spread_of(durations_ns: array[int]) -> Spread:
    if not durations_ns:
        return Spread()
    ordered = sorted(durations_ns)
    p50, p90, p99 = (ordered[_rank(len(ordered), percent)] / 1e6 for percent in (50, 90, 99))
    return Spread(len(ordered), p50, p90, p99, ordered[-1] / 1e6)


def _rank(count: int, percent: int) -> int:
    """Index of the nearest rank: the smallest value that `percent` of all do not exceed."""
    return max(0, -(-count * percent // 100) - 1)
