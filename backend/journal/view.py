"""Keeps stream states of some kinds in memory, fresh by tailing the log.

It serves what it has while Postgres is away and says so; it knows kinds, not their meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Final, Protocol

import msgspec
import structlog

from backend.journal.fold import Folds
from backend.journal.reader import head
from backend.journal.wake import LogWatch
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import Connection, DatabaseError, Pool, fetch_all, fetch_one
from backend.kit.tasks import ended, vital
from schemas.event import Position, topic_of
from schemas.ids import kind_of

STATES_OF_KIND: Final = """
SELECT stream, version, state FROM streams
WHERE stream > %(after)s AND stream < %(end)s ORDER BY stream LIMIT %(count_max)s
"""
STATES_OF: Final = """
SELECT stream, version, state FROM streams WHERE stream = ANY(%(streams)s)
"""
CHANGED: Final = """
WITH seen AS MATERIALIZED (
    SELECT epoch, xid, seq, topic, stream FROM event_log
    WHERE (epoch, xid, seq) > (%(epoch)s, %(xid)s::text::xid8, %(seq)s)
        AND (epoch < (SELECT site.epoch FROM site)
            OR xid < pg_snapshot_xmin(pg_current_snapshot()))
    ORDER BY epoch, xid, seq LIMIT %(count_max)s
), last AS (
    SELECT epoch, xid, seq FROM seen ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1
)
SELECT last.epoch, last.xid::text::bigint, last.seq, (SELECT count(*) FROM seen),
    coalesce((SELECT array_agg(DISTINCT stream) FROM seen WHERE topic = ANY(%(topics)s)), '{}')
FROM last
"""

PAGE_ROWS: Final = 1_000
TAIL_ROWS: Final = 5_000
READ_EVERY_S: Final = 0.2
"""Reads are at least this far apart: under load every append wakes us."""
CATCH_UP_EVERY_S: Final = 0.1
CATCH_UP_TIMEOUT_S: Final = 2.0
PASS_TIMEOUT_S: Final = 10.0
BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0)

_log = structlog.get_logger("journal.view")


class Listener(Protocol):
    """Who holds the states of some kinds. Both methods are quick and raise nothing."""

    kinds: ClassVar[tuple[str, ...]]

    def put(self, stream: str, version: int, state: Any) -> None: ...

    def drop(self, stream: str) -> None:
        """The state cannot be read: nothing may rest on what it was before."""
        ...


class StateView:
    """One per process. `start` after `load`; `refresh` to read at once what was just written."""

    def __init__(
        self,
        pool: Pool,
        watch: LogWatch,
        folds: Folds,
        clock: Clock,
        randomness: Randomness,
        listeners: Sequence[Listener],
    ) -> None:
        self._pool: Final = pool
        self._watch: Final = watch
        self._folds: Final = folds
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._listener_of: Final = {kind: one for one in listeners for kind in one.kinds}
        self._topics: Final = sorted({topic_of(f"{kind}:") for kind in self._listener_of})
        self._lock: Final = asyncio.Lock()
        self._place: Position | None = None
        self._fresh_at_s = 0.0
        self._stale = True
        self._task: asyncio.Task[None] | None = None
        self._next_read: asyncio.Task[None] | None = None
        self._caught_up_s = -CATCH_UP_EVERY_S

    @property
    def place(self) -> Position | None:
        """How far in the log the view has read; None before the first load."""
        return self._place

    @property
    def stale(self) -> bool:
        """The last attempt to read failed, or none was made: what is served may be old."""
        return self._stale

    @property
    def age_s(self) -> float:
        """Seconds since the view was last known to be current."""
        return self._clock.monotonic_s() - self._fresh_at_s

    async def load(self) -> None:
        """Reads all states, once. Raises DatabaseError, OSError or TimeoutError."""
        async with self._lock, self._pool.connection() as connection:
            # The place first: what lands while states are read is then read again, not lost.
            place = await head(connection)
            for kind in self._listener_of:
                async for rows in _pages_of_kind(connection, kind):
                    self._put(rows)
            self._place = place
        self._now_fresh()

    async def refresh(self) -> None:
        """Reads everything that readers may see now. Raises as `load`."""
        if self._place is None:
            await self.load()
            return
        try:
            async with (
                self._lock,
                asyncio.timeout(PASS_TIMEOUT_S),
                self._pool.connection() as connection,
            ):
                while await self._read_changes(connection) >= TAIL_ROWS:
                    pass
        except (DatabaseError, OSError, TimeoutError):
            self._stale = True
            raise
        self._now_fresh()

    async def catch_up(self) -> None:
        """Reads what was committed before this call; never raises, for a stale view still serves.

        All who ask before a read has begun share it, and reads are CATCH_UP_EVERY_S apart: asking
        for what does not exist costs the database nothing more.
        """
        if self._next_read is None:
            self._next_read = asyncio.get_running_loop().create_task(self._read_soon())
        await asyncio.shield(self._next_read)

    async def _read_soon(self) -> None:
        wait_s = self._caught_up_s + CATCH_UP_EVERY_S - self._clock.monotonic_s()
        await asyncio.sleep(max(0.0, wait_s))
        self._next_read = None
        self._caught_up_s = self._clock.monotonic_s()
        with contextlib.suppress(DatabaseError, OSError, TimeoutError):
            async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
                await self.refresh()

    async def reread(self, *streams: str) -> None:
        """Reads these streams now, ahead of the log: for who has just written them."""
        async with self._lock, self._pool.connection() as connection:
            self._put(await fetch_all(connection, STATES_OF, {"streams": list(streams)}))

    def start(self) -> None:
        self._task = vital(self._run(), "state view")

    async def stop(self) -> None:
        await ended(self._task, self._next_read)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.refresh()
                failures = 0
            except (DatabaseError, OSError, TimeoutError) as error:
                failures += 1
                _log.warning("view is stale", error=type(error).__name__, age_s=round(self.age_s))
                await asyncio.sleep(self._backoff_s(failures))
                continue
            await asyncio.sleep(READ_EVERY_S)
            await self._watch.wait()

    async def _read_changes(self, connection: Connection) -> int:
        """One bounded step forward; returns how many events were passed."""
        assert self._place is not None
        row = await fetch_one(
            connection,
            CHANGED,
            {
                "epoch": self._place.epoch,
                "xid": str(self._place.xid),
                "seq": self._place.seq,
                "count_max": TAIL_ROWS,
                "topics": self._topics,
            },
        )
        if row is None:
            return 0
        epoch, xid, seq, passed, streams = row
        ours = [stream for stream in streams if kind_of(stream) in self._listener_of]
        for first in range(0, len(ours), PAGE_ROWS):
            page = ours[first : first + PAGE_ROWS]
            self._put(await fetch_all(connection, STATES_OF, {"streams": page}))
        self._place = Position(epoch, xid, seq)
        return int(passed)

    def _put(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for stream, version, state in rows:
            listener = self._listener_of[kind_of(stream)]
            try:
                listener.put(stream, version, self._folds.of(stream).decode(state))
            except msgspec.DecodeError as error:
                _log.error("state unreadable", stream=stream, version=version, error=str(error))
                listener.drop(stream)

    def _now_fresh(self) -> None:
        self._stale = False
        self._fresh_at_s = self._clock.monotonic_s()

    def _backoff_s(self, failures: int) -> float:
        pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
        return pause_s * (0.5 + self._randomness.bits(16) / 2**17)


async def load_states(
    connection: Connection, folds: Folds, streams: Sequence[str]
) -> dict[str, tuple[int, Any]]:
    """Stream → (version, state) as committed now; streams without an event are missing."""
    rows = await fetch_all(connection, STATES_OF, {"streams": list(streams)})
    return {stream: (version, folds.of(stream).decode(state)) for stream, version, state in rows}


async def states_of_kind(
    connection: Connection, folds: Folds, kind: str
) -> AsyncIterator[tuple[str, int, Any]]:
    """(stream, version, state) of every stream of a kind, sorted by name, read page by page."""
    async for rows in _pages_of_kind(connection, kind):
        for stream, version, state in rows:
            yield stream, version, folds.of(stream).decode(state)


async def _pages_of_kind(connection: Connection, kind: str) -> AsyncIterator[list[tuple[Any, ...]]]:
    after = f"{kind}:"
    while True:
        rows = await fetch_all(
            connection,
            STATES_OF_KIND,
            # `;` follows `:` in the C collation that streams are sorted by.
            {"after": after, "end": f"{kind};", "count_max": PAGE_ROWS},
        )
        yield rows
        if len(rows) < PAGE_ROWS:
            return
        after = rows[-1][0]
