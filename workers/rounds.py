"""Doing one thing again and again in a task of its own. What is done, and that it may be done by
several processes at once, is the subclass's matter.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final

import structlog

from backend.kit.clock import Randomness
from backend.kit.postgres import DatabaseError
from backend.kit.tasks import ended, vital
from schemas.errors import SuanpanError

_log = structlog.get_logger("workers.rounds")


class Rounds(ABC):
    """One task per process. A pass that fails is tried again with the next one."""

    def __init__(
        self, name: str, every_s: float, timeout_s: float, randomness: Randomness | None = None
    ) -> None:
        """`timeout_s`: of one pass. With `randomness`, processes started together drift apart."""
        self._name: Final = name
        self._every_s: Final = every_s
        self._timeout_s: Final = timeout_s
        self._randomness: Final = randomness
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def once(self) -> None:
        """One pass. May raise SuanpanError, OSError and psycopg errors."""

    def start(self) -> None:
        self._task = vital(self._run(), self._name)

    async def stop(self) -> None:
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self.once()
            except (DatabaseError, SuanpanError, OSError, TimeoutError) as error:
                _log.warning("a pass waits", worker=self._name, error=type(error).__name__)
            await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        if self._randomness is None:
            return self._every_s
        return self._every_s * (0.75 + self._randomness.bits(16) / 2**17)
