"""Keeps the leases of this process's requests alive; each renewal carries how far the answer is.

A process that dies stops renewing: the sweep then ends its requests by what it last said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from backend.kit.clock import Clock
from backend.kit.postgres import Connection, DatabaseError, Pool, fetch_all
from backend.kit.tasks import ended, vital
from schemas.ids import ChannelId, RequestId

RENEW: Final = """
WITH mine AS (
    SELECT l.request_id, i.progress FROM leases l
    JOIN json_to_recordset(%(leases)s::json) AS i(request_id uuid, progress text)
        ON l.request_id = i.request_id
    ORDER BY l.request_id FOR UPDATE OF l SKIP LOCKED
)
UPDATE leases l SET generation = l.generation + 1, progress = mine.progress,
    until = clock_timestamp() + make_interval(secs => %(seconds)s)
FROM mine WHERE l.request_id = mine.request_id
"""
EXPIRED: Final = """
SELECT request_id::text, stream, generation, progress FROM leases
WHERE until < clock_timestamp() ORDER BY until LIMIT %(count_max)s
"""

FORGET: Final = """
DELETE FROM leases WHERE request_id = ANY(%(requests)s::uuid[]) AND until < clock_timestamp()
"""

RENEW_BATCH_MAX: Final = 1_000
_ENCODER: Final = msgspec.json.Encoder()
_log = structlog.get_logger("ledger.leases")


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far an answer is, for a sweep that must end it. Tokens."""

    input: int = 0
    output: int = 0
    begun: bool = False
    """A first token has come: what was received is owed."""
    channel: ChannelId | None = None
    upstream_model: str | None = None
    cached_input: int = 0
    """Input that the provider had cached; `input` is the rest."""
    cache_write: int = 0
    cache_write_1h: int = 0


class Expired(msgspec.Struct, frozen=True):
    """A lease that ran out, as it was when it was read."""

    request_id: RequestId
    account: str
    generation: int
    progress: Progress


class LeaseKeeper:
    """`track` when a hold has landed, `drop` when its outcome has."""

    def __init__(self, pool: Pool, clock: Clock, lease_s: int, renew_every_s: float) -> None:
        self._pool: Final = pool
        self._clock: Final = clock
        self._lease_s: Final = lease_s
        self._renew_every_s: Final = renew_every_s
        self._tracked: dict[RequestId, tuple[float, Callable[[], Progress]]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def lease_s(self) -> int:
        return self._lease_s

    @property
    def open_count(self) -> int:
        return len(self._tracked)

    def start(self) -> None:
        self._task = vital(self._run(), "leases")

    async def stop(self) -> None:
        await ended(self._task)

    def track(self, request_id: RequestId, progress: Callable[[], Progress]) -> None:
        due_s = self._clock.monotonic_s() + self._renew_every_s
        self._tracked[request_id] = (due_s, progress)

    def drop(self, request_id: RequestId) -> None:
        self._tracked.pop(request_id, None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._renew_every_s / 10)
            due = self._due()
            if not due:
                continue
            try:
                async with asyncio.timeout(self._renew_every_s):
                    await self._renew(due)
            except (DatabaseError, OSError, TimeoutError) as error:
                _log.warning("leases not renewed", count=len(due), error=type(error).__name__)

    def _due(self) -> list[RequestId]:
        """Requests whose renewal is due; `_tracked` is ordered by due time within one interval."""
        now_s = self._clock.monotonic_s()
        due = [request_id for request_id, (at_s, _) in self._tracked.items() if at_s <= now_s]
        return due[:RENEW_BATCH_MAX]

    async def _renew(self, due: list[RequestId]) -> None:
        rows = [
            {"request_id": r, "progress": _ENCODER.encode(self._tracked[r][1]()).decode()}
            for r in due
            if r in self._tracked
        ]
        async with self._pool.connection() as connection:
            await connection.execute(
                RENEW, {"leases": _ENCODER.encode(rows).decode(), "seconds": self._lease_s}
            )
        next_s = self._clock.monotonic_s() + self._renew_every_s
        for request_id in due:
            entry = self._tracked.pop(request_id, None)
            if entry is not None:
                self._tracked[request_id] = (next_s, entry[1])


async def find_expired(connection: Connection, count_max: int) -> list[Expired]:
    """Leases that ran out by the database's clock, oldest first."""
    rows = await fetch_all(connection, EXPIRED, {"count_max": count_max})
    return [
        Expired(
            RequestId(request_id),
            account,
            generation,
            _progress_of(progress),
        )
        for request_id, account, generation, progress in rows
    ]


async def forget_strays(connection: Connection, requests: Sequence[RequestId]) -> None:
    """Deletes leases of requests that hold nothing any more.

    A restored backup has them: the request was open when the backup was made, and its end came
    back from Kafka. Left alone they would in time fill every pass of the sweep.
    """
    await connection.execute(FORGET, {"requests": list(requests)})


def _progress_of(text: str) -> Progress:
    """Nothing where it was never renewed, or cannot be read: then the caller is not charged."""
    try:
        return msgspec.json.decode(text, type=Progress) if text else Progress()
    except msgspec.DecodeError:
        _log.error("a lease's progress cannot be read")
        return Progress()
