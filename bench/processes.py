"""Processor time and memory of processes, from Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class CpuTimes(msgspec.Struct, frozen=True):
    """Nanoseconds on a processor so far, per (process, thread)."""

    threads_ns: dict[tuple[int, int], int]

    def since(self, earlier: CpuTimes) -> float:
        """Seconds used from `earlier` to now; threads that ended in between are not counted."""
        used_ns = sum(
            spent_ns - earlier.threads_ns.get(thread, 0)
            for thread, spent_ns in self.threads_ns.items()
        )
        return used_ns / 1e9


def cpu_times(pids: Iterable[int]) -> CpuTimes:
    """Of all threads of the processes."""
    return CpuTimes(
        {(pid, thread): ns for pid in pids for thread, ns in _threads_ns(pid)},
    )


def _threads_ns(pid: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for task in _listed(_PROC / str(pid) / "task"):
        try:
            # The scheduler's own clock; `stat` counts in ticks of 10 ms.
            found.append((int(task.name), int((task / "schedstat").read_text().split()[0])))
        except OSError:
            continue  # It ended between listing and reading.
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """The process and all that come from it, by parentage at this moment."""
    children: dict[int, list[int]] = {}
    for entry in _listed(_PROC):
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found


def _parent(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text()
    except OSError:
        return None
    # The command's name, in parentheses, may itself hold spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[1])


def pss_kb(pid: int) -> int:
    """Proportional set size: shared pages count by share. 0 for a process that is gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def name_of(pid: int) -> str:
    """The program's name as the kernel keeps it."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return "?"


def machine_busy_s() -> float:
    """Seconds that all processors together were busy since the machine started."""
    fields = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(field) for field in fields]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks[:8]) - idle - waiting) / _TICKS_PER_S
