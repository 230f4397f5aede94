"""Tells readers that the log grew: at once in this process, by NOTIFY in others, by a slow poll
always.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from backend.kit.postgres import DatabaseError, connect
from backend.kit.tasks import ended, vital

CHANNEL: Final = "suanpan_log"
NOTIFY: Final = "SELECT pg_notify('suanpan_log', '')"
LISTEN: Final = "LISTEN suanpan_log"
ASYNCHRONOUS: Final = "SET synchronous_commit = off"

NOTIFY_EVERY_S: Final = 0.02
"""At most one NOTIFY per this: each takes a cluster-wide lock while it commits."""
POLL_S: Final = 0.5
_RETRY_S: Final = 1.0

_log = structlog.get_logger("journal.wake")


class LogWatch:
    """One per process. `announce` after an append; `wait` before reading again."""

    def __init__(self, database_url: str) -> None:
        self._url: Final = database_url
        self._waiters: set[asyncio.Event] = set()
        self._to_send = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [vital(self._send(), "notify"), vital(self._listen(), "listen")]

    async def stop(self) -> None:
        await ended(*self._tasks)

    def announce(self) -> None:
        """The log has grown: wakes this process's readers now and the others' soon."""
        self._wake_here()
        self._to_send.set()

    async def wait(self, timeout_s: float = POLL_S) -> None:
        """Returns when the log may have grown, at the latest after `timeout_s`."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await event.wait()
        finally:
            self._waiters.discard(event)

    def _wake_here(self) -> None:
        for event in self._waiters:
            event.set()

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            try:
                connection = await connect(self._url, application="suanpan notify")
                async with connection:
                    await connection.execute(ASYNCHRONOUS)
                    while True:
                        await self._to_send.wait()
                        self._to_send.clear()
                        await connection.execute(NOTIFY)
                        await asyncio.sleep(NOTIFY_EVERY_S)
            except DatabaseError as error:
                _log.debug("notify failed", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)

    async def _listen(self) -> None:
        while True:
            try:
                connection = await connect(self._url, application="suanpan listen")
                async with connection:
                    await connection.execute(LISTEN)
                    async for _ in connection.notifies():
                        self._wake_here()
            except DatabaseError as error:
                _log.debug("listen failed", error=type(error).__name__)
            await asyncio.sleep(_RETRY_S)
