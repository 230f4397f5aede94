"""Finds the first seal of the data folder that covers an event, by halving: few files are read."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import Final

from backend.journal.seal import BrokenSeal, Seal
from backend.kit.clock import Clock
from projections.sealed_files import SealFolder
from schemas.event import Recorded

KEPT_MAX: Final = 256
LOOK_AGAIN_S: Final = 2.0
"""A folder of years of seals is not listed for every event that is shown."""


class CoveringSeals:
    """One per process. A seal is not judged here: the audit does that."""

    def __init__(self, data_dir: Path, clock: Clock) -> None:
        self._folder: Final = SealFolder(data_dir)
        self._clock: Final = clock
        self._read: Final = lru_cache(maxsize=KEPT_MAX)(self._folder.read)
        self._numbers: list[int] = []
        self._looked_s = -LOOK_AGAIN_S

    async def of(self, row: Recorded) -> Seal | None:
        """None where no seal covers the event yet, or the folder has none that can be read."""
        return await asyncio.to_thread(self._find, row)

    def _find(self, row: Recorded) -> Seal | None:
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= LOOK_AGAIN_S:
            self._looked_s, self._numbers = now_s, self._folder.numbers()
        numbers = self._numbers
        try:
            at = bisect_left(numbers, True, key=lambda number: covers(self._read(number), row))
            return self._read(numbers[at]) if at < len(numbers) else None
        except BrokenSeal:
            return None


def covers(seal: Seal, row: Recorded) -> bool:
    """Seals of a chain cover more and more: along it this is false first, and then true."""
    if not seal.places:
        return row.position <= seal.position
    return any(
        place.topic == row.topic and place.shard == row.shard and row.position <= place.position
        for place in seal.places
    )
