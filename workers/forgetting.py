"""Finishes forgettings that were cut off, and keeps the epoch of the data keys young.

It decides nothing about people: who is forgotten says the log.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from backend.forgetting import Forgetting
from backend.identity.key_epochs import KeyEpochs
from backend.kit.clock import Randomness
from backend.kit.postgres import DatabaseError
from backend.kit.tasks import ended, vital
from schemas.errors import SuanpanError

EVERY_S: Final = 300.0
PASS_TIMEOUT_S: Final = 600.0

_log = structlog.get_logger("workers.forgetting")


class Forgetter:
    """One task per process; several processes may be at it at once."""

    def __init__(
        self,
        forgetting: Forgetting,
        epochs: KeyEpochs,
        randomness: Randomness,
        every_s: float = EVERY_S,
    ) -> None:
        self._forgetting: Final = forgetting
        self._epochs: Final = epochs
        self._randomness: Final = randomness
        self._every_s: Final = every_s
        self._task: asyncio.Task[None] | None = None
        self.finished = 0

    def start(self) -> None:
        self._task = vital(self._run(), "forgetter")

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PASS_TIMEOUT_S):
                    await self.tend()
            except (DatabaseError, SuanpanError, OSError, TimeoutError) as error:
                _log.warning("forgetting waits", error=type(error).__name__)
            # Spread: processes that were started together would all come at once.
            await asyncio.sleep(self._every_s * (0.75 + self._randomness.bits(16) / 2**17))

    async def tend(self) -> None:
        """One pass. Raises SuanpanError, OSError and psycopg errors."""
        self.finished += await self._forgetting.finish_all()
        await self._epochs.tend()
