"""The one writer of a process: group commit, optimistic. Collects commands while the last commit
runs.

It knows streams and versions, not what they mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from backend.journal.commands import Command, Outcome
from backend.journal.fold import Folds
from backend.journal.heads import HeadCache
from backend.journal.lane import Lane, Pending
from backend.journal.wake import LogWatch
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import unavailable
from schemas.errors import Unavailable
from schemas.ids import uuid7

BATCH_MAX: Final = 256
QUEUE_MAX: Final = 4_000
URGENT_QUEUE_MAX: Final = 20_000
ATTEMPTS_MAX: Final = 200
HEADS_BYTES_MAX: Final = 64 * 1024 * 1024


class _Queues:
    """Newcomers and urgent commands; a command alone never waits for company."""

    def __init__(self, watch: LogWatch) -> None:
        self.urgent: deque[Pending] = deque()
        self.normal: deque[Pending] = deque()
        self.alone: deque[Pending] = deque()
        self.group_lane: Lane | None = None
        self.single_lane: Lane | None = None
        self.commands_landed = 0
        self.appends = 0
        self._watch: Final = watch

    def take(self) -> list[Pending]:
        taken: list[Pending] = []
        for queue in (self.urgent, self.normal):
            while queue and len(taken) < BATCH_MAX:
                pending = queue.popleft()
                if not pending.future.done():
                    taken.append(pending)
        return taken

    def again(self, pendings: Sequence[Pending]) -> None:
        """Back to the front, to be decided on state read for it."""
        for pending in reversed(pendings):
            pending.attempts += 1
            pending.needs_read = True
            if pending.attempts > ATTEMPTS_MAX:
                pending.fail(Unavailable("Too much contention; try again.", retry_after_s=1))
            else:
                (self.urgent if pending.command.urgent else self.normal).appendleft(pending)
        assert self.group_lane is not None
        self.group_lane.wake()

    def one_by_one(self, pendings: Sequence[Pending]) -> None:
        self.alone.extend(pendings)
        assert self.single_lane is not None
        self.single_lane.wake()

    def abandon(self) -> None:
        """Nobody will take these any more."""
        for queue in (self.urgent, self.normal, self.alone):
            while queue:
                queue.popleft().fail(unavailable())

    def landed(self, commands: int) -> None:
        self.appends += 1
        self.commands_landed += commands
        self._watch.announce()


class _Alone:
    """The second connection's source: one command at a time, so that one bad one fails alone."""

    def __init__(self, queues: _Queues) -> None:
        self._queues: Final = queues

    def take(self) -> list[Pending]:
        while self._queues.alone:
            pending = self._queues.alone.popleft()
            if not pending.future.done():
                return [pending]
        return []

    def again(self, pendings: Sequence[Pending]) -> None:
        self._queues.again(pendings)

    def one_by_one(self, pendings: Sequence[Pending]) -> None:
        self._queues.one_by_one(pendings)

    def landed(self, commands: int) -> None:
        self._queues.landed(commands)


class Writer:
    """`submit` from any task; `start` and `stop` once."""

    def __init__(
        self,
        database_url: str,
        folds: Folds,
        clock: Clock,
        randomness: Randomness,
        watch: LogWatch,
    ) -> None:
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._queues: Final = _Queues(watch)
        cache = HeadCache(HEADS_BYTES_MAX)
        alone = _Alone(self._queues)
        self._group: Final = Lane(
            database_url, folds, cache, clock.now_us, self.new_id, self._queues
        )
        self._single: Final = Lane(database_url, folds, cache, clock.now_us, self.new_id, alone)
        self._queues.group_lane, self._queues.single_lane = self._group, self._single

    def start(self) -> None:
        self._group.start()
        self._single.start()

    async def stop(self) -> None:
        """Commits what is queued, then ends; what could not be told its outcome is Unavailable."""
        await self._group.stop()
        await self._single.stop()
        self._queues.abandon()

    def new_id(self) -> UUID:
        """A fresh UUIDv7 for a command or an event."""
        return uuid7(self._clock.now_us(), self._randomness.bits(74))

    async def submit(self, command: Command, timeout_s: float = 10.0) -> Outcome:
        """Decides and records a command.

        Raises Unavailable when the queue is full, Postgres does not answer within `timeout_s`, or
        the site is read-only. After a timeout the command may still land: its id tells.
        """
        queue, most = (
            (self._queues.urgent, URGENT_QUEUE_MAX)
            if command.urgent
            else (self._queues.normal, QUEUE_MAX)
        )
        if len(queue) >= most:
            raise Unavailable("Too many requests are waiting to be recorded.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        pending = Pending(command, loop.create_future())
        timer = loop.call_later(timeout_s, pending.fail, unavailable())
        queue.append(pending)
        self._group.wake()
        try:
            return await pending.future
        finally:
            timer.cancel()

    @property
    def waiting(self) -> int:
        """Commands that no append has been sent for yet."""
        return len(self._queues.urgent) + len(self._queues.normal) + len(self._queues.alone)

    @property
    def appends(self) -> int:
        return self._queues.appends

    @property
    def commands_landed(self) -> int:
        return self._queues.commands_landed
