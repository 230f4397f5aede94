"""Who used the processors during a measurement: named groups of processes, and everybody else."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from bench.processes import CpuTimes, cpu_times, descendants, machine_busy_s


class Spent(msgspec.Struct, frozen=True):
    """Processor seconds between two readings."""

    seconds: float
    groups_s: dict[str, float]
    others_s: float
    """Used by processes that are not ours."""

    @property
    def others_share(self) -> float:
        return max(0.0, self.others_s) / self.seconds


class Reading(msgspec.Struct, frozen=True):
    at_s: float
    groups: dict[str, CpuTimes]
    ours: CpuTimes
    machine_s: float


class Meter:
    """Reads groups of processes, each given by its roots; what they started belongs to them."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self._groups: Final = dict(groups)

    def read(self) -> Reading:
        ours = descendants(os.getpid())
        groups = {
            name: cpu_times({pid for root in roots for pid in descendants(root)})
            for name, roots in self._groups.items()
        }
        return Reading(time.monotonic(), groups, cpu_times(ours), machine_busy_s())

    def since(self, earlier: Reading) -> Spent:
        """What was used from `earlier` to now."""
        now = self.read()
        ours_s = now.ours.since(earlier.ours)
        return Spent(
            now.at_s - earlier.at_s,
            {name: times.since(earlier.groups[name]) for name, times in now.groups.items()},
            now.machine_s - earlier.machine_s - ours_s,
        )
