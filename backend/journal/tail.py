"""The transport without Kafka: consumers tail the table. Each page is read once for all of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import structlog

from backend.journal.consumer import (
    Consumer,
    ForkedStream,
    MissingEvents,
    consume,
    place_in_table,
    place_of_table,
)
from backend.journal.reader import PAGE_ROWS, read_page
from backend.journal.wake import LogWatch
from backend.kit.clock import Randomness
from backend.kit.postgres import DatabaseError, Pool
from backend.kit.tasks import ended, vital
from schemas.event import Position, Recorded

BATCH_EVERY_S: Final = 0.1
"""Under load, batches are made this far apart: each costs a handful of round trips whatever its
size.
"""
BACKOFF_S: Final = (0.1, 0.5, 2.0, 5.0)
PAGES_KEPT: Final = 4

_log = structlog.get_logger("journal.tail")


class Pages:
    """The newest pages of the log, shared by consumers that stand at the same place."""

    def __init__(self, pool: Pool) -> None:
        self._pool: Final = pool
        self._kept: OrderedDict[Position, list[Recorded]] = OrderedDict()
        self._lock: Final = asyncio.Lock()

    async def after(self, position: Position) -> list[Recorded]:
        """The page behind a position; empty at the end of the log."""
        async with self._lock:
            page = self._kept.get(position)
            if page is not None:
                return page
            async with self._pool.connection() as connection:
                page = await read_page(connection, position)
            if page:
                self._kept[position] = page
            while len(self._kept) > PAGES_KEPT:
                self._kept.popitem(last=False)
            return page


class TableTail:
    """Runs consumers in tasks until stopped. `alarms` names consumers that halted, and why."""

    def __init__(
        self, pool: Pool, watch: LogWatch, randomness: Randomness, consumers: Sequence[Consumer]
    ) -> None:
        self._pool: Final = pool
        self._watch: Final = watch
        self._randomness: Final = randomness
        self._consumers: Final = tuple(consumers)
        self._pages: Final = Pages(pool)
        self._tasks: list[asyncio.Task[None]] = []
        self.alarms: dict[str, str] = {}

    def start(self) -> None:
        self._tasks = [vital(self._run(one), f"consumer {one.name}") for one in self._consumers]

    async def stop(self) -> None:
        """Ends between batches: what was begun commits or rolls back."""
        await ended(*self._tasks)

    async def _run(self, consumer: Consumer) -> None:
        failures = 0
        position: Position | None = None
        while True:
            try:
                if position is None:
                    async with self._pool.connection() as connection:
                        position = await place_of_table(connection, consumer.name)
                page = await self._pages.after(position)
                if page:
                    await consume(self._pool, consumer, page, place_in_table)
                    position = page[-1].position
                failures = 0
                if len(page) < PAGE_ROWS:
                    await asyncio.sleep(BATCH_EVERY_S if page else 0)
                    if not page:
                        await self._watch.wait()
            except (ForkedStream, MissingEvents) as error:
                self.alarms[consumer.name] = str(error)
                _log.critical("consumer halted", consumer=consumer.name, reason=str(error))
                return
            except (DatabaseError, OSError, TimeoutError) as error:
                _log.warning("consumer waits", consumer=consumer.name, error=type(error).__name__)
                position = None
                failures += 1
                await asyncio.sleep(self._backoff_s(failures))

    def _backoff_s(self, failures: int) -> float:
        pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
        return pause_s * (0.5 + self._randomness.bits(16) / 2**17)
