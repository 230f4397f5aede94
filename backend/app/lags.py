"""Looks at consumer lag every few seconds, so that health and metrics never wait for a query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from backend.journal.consumer import Consumer
from backend.kit.postgres import DatabaseError, Pool
from backend.kit.tasks import ended, vital
from projections.health import Lag, alarms_of, list_lags

EVERY_S: Final = 5.0


class LagWatch:
    def __init__(self, pool: Pool, consumers: Sequence[Consumer]) -> None:
        self._pool: Final = pool
        self._consumers: Final = tuple(consumers)
        self._lags: dict[str, Lag] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = vital(self._run(), "lag watch")

    async def stop(self) -> None:
        await ended(self._task)

    def shown(self) -> dict[str, Any]:
        """Per consumer: rows and milliseconds behind, streams parked."""
        return {
            name: {"rows": lag.rows, "behind_ms": lag.behind_ms, "parked": lag.parked}
            for name, lag in self._lags.items()
        }

    def rows_of(self, name: str) -> float:
        return self._lags[name].rows if name in self._lags else float("nan")

    def parked_of(self, name: str) -> float:
        return self._lags[name].parked if name in self._lags else float("nan")

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each consumer that has set streams aside or is far behind."""
        return alarms_of(self._lags.values())

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(EVERY_S), self._pool.connection() as connection:
                    lags = await list_lags(connection, self._consumers)
                self._lags = {lag.consumer: lag for lag in lags}
            except (DatabaseError, OSError, TimeoutError):
                self._lags = {}
            await asyncio.sleep(EVERY_S)
