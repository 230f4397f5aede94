"""Carries every row of the log to Kafka, in order, by one leader; Kafka may be away for any time.

It sends what is committed and never decides what an event means.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal
from uuid import UUID

import msgspec
import structlog

from backend.journal.kafka_check import Ahead, InStep, compare, identity_of
from backend.journal.keys_topic import (
    EpochRecord,
    KeyRecord,
    epoch_record,
    key_record,
    site_records,
)
from backend.journal.publisher_place import (
    AHEAD,
    CLOSE_SITE,
    RESTORING,
    Head,
    LostLeadership,
    Place,
    begin_again,
    lead,
    move,
    take_lock,
)
from backend.journal.reader import read_page, site_of
from backend.journal.unpublished_keys import (
    list_tombstones,
    list_unpublished_epochs,
    list_unpublished_keys,
    mark_epochs_published,
    mark_published,
    mark_tombstones_published,
)
from backend.journal.wake import LogWatch
from backend.kit.clock import Clock, Randomness
from backend.kit.kafka import MalformedRecord
from backend.kit.kafka_admin import KafkaUnavailable, ensure_topics
from backend.kit.kafka_outlet import Outgoing, Outlet, outgoing_of, outlet
from backend.kit.postgres import Connection, DatabaseError, connect
from backend.kit.tasks import ended, vital
from schemas.errors import SiteProblem
from schemas.event import Position, Recorded

PAGE_ROWS: Final = 1_000
KEYS_MAX: Final = 1_000
SEND_TIMEOUT_S: Final = 30.0
CHECK_EVERY_S: Final = 30.0
"""How often an idle leader asks whether Kafka is still the one that was filled."""
NAME_SITE_EVERY_S: Final = 12 * 3600.0
"""How often each partition of the keys' topic is given a record, so that Kafka compacts it."""
STANDBY_S: Final = 2.0
BACKOFF_S: Final = (0.2, 1.0, 3.0, 8.0)

State = Literal["starting", "standby", "publishing", "waiting", "read-only", "stopped"]

_log = structlog.get_logger("journal.publisher")


class PublisherStatus(msgspec.Struct, frozen=True):
    """For health: what the publisher does, and why it does not publish."""

    state: State
    reason: str = ""
    rows_sent: int = 0


class KafkaReplaced(RuntimeError):
    """The cluster is not the one that was checked: begin again with the check."""


class Publisher:
    """`start` and `stop` once. Several may run anywhere; one leads, the others stand by."""

    def __init__(
        self,
        database_url: str,
        bootstrap: str,
        watch: LogWatch,
        clock: Clock,
        randomness: Randomness,
        *,
        replication_factor: int = 1,
    ) -> None:
        self._url: Final = database_url
        self._bootstrap: Final = bootstrap
        self._watch: Final = watch
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._replication_factor: Final = replication_factor
        self._task: asyncio.Task[None] | None = None
        self._rows_sent = 0
        self._failures = 0
        self._checked: Final = asyncio.Event()
        self.status = PublisherStatus("starting")

    def start(self) -> None:
        self._task = vital(self._run(), "publisher")

    async def wait_checked(self, timeout_s: float) -> None:
        """Returns once Kafka was compared with the table (or cannot be, or another one leads).

        Who accepts writes earlier could fork streams that a restored backup lacks.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._checked.wait()

    async def stop(self) -> None:
        """Ends now; what was sent and not yet remembered is sent again by the next leader."""
        await ended(self._task)
        self._say("stopped")

    async def _run(self) -> None:
        while True:
            try:
                pause_s = await self._session()
            except (LostLeadership, KafkaReplaced) as change:
                self._say("waiting", str(change))
                pause_s = self._jittered(BACKOFF_S[0])
            except (SiteProblem, MalformedRecord) as problem:
                self._say("waiting", str(problem))
                _log.error("publisher cannot go on", reason=str(problem))
                pause_s = self._jittered(BACKOFF_S[-1])
            except (KafkaUnavailable, DatabaseError, OSError, TimeoutError) as error:
                self._say("waiting", f"{type(error).__name__}: {error}")
                _log.warning("publisher waits", error=type(error).__name__)
                pause_s = self._backoff_s()
            await asyncio.sleep(pause_s)

    async def _session(self) -> float:
        """One leadership, until something breaks; or seconds to wait before trying to lead."""
        async with await connect(self._url, application="suanpan publisher") as connection:
            if not await take_lock(connection):
                self._say("standby")
                return self._jittered(STANDBY_S)
            site_id, _, reason = await site_of(connection)
            if reason == RESTORING:
                # Half of a log must not be taken for a log that Kafka is to be filled from.
                self._say("read-only", reason)
                return self._jittered(STANDBY_S)
            place = await lead(connection)
            await ensure_topics(self._bootstrap, self._replication_factor)
            identity = await identity_of(self._bootstrap)
            verdict = await compare(connection, self._bootstrap, place, identity)
            if isinstance(verdict, Ahead):
                # The lock is given back while we wait: `recover` needs it.
                return await self._close_site(connection, verdict)
            if not isinstance(verdict, InStep):
                _log.warning("kafka is filled from the start", reason=verdict.reason)
                place = await begin_again(connection, place.leader_epoch, identity)
            async with outlet(self._bootstrap, client_id="suanpan-publisher") as out:
                await self._publish(connection, out, place, site_id)
        raise AssertionError("publishing ends by an error or a cancellation")

    async def _close_site(self, connection: Connection, verdict: Ahead) -> float:
        await connection.execute(CLOSE_SITE, {"reason": AHEAD})
        _, _, reason = await site_of(connection)
        self._say("read-only", reason or AHEAD)
        _log.critical(
            "kafka is ahead of the table",
            stream=verdict.stream,
            version=verdict.version,
            forked=verdict.forked,
        )
        return self._jittered(STANDBY_S)

    async def _publish(
        self, connection: Connection, out: Outlet, place: Place, site_id: UUID
    ) -> None:
        position, leader_epoch = place.position, place.leader_epoch
        self._failures = 0
        checked_s, named_s = self._clock.monotonic_s(), -NAME_SITE_EVERY_S
        while True:
            self._say("publishing")
            if self._clock.monotonic_s() - named_s > NAME_SITE_EVERY_S:
                # Whoever restores from Kafka alone begins the chains with it.
                await out.send(site_records(site_id), timeout_s=SEND_TIMEOUT_S)
                named_s = self._clock.monotonic_s()
            page = await read_page(connection, position, PAGE_ROWS)
            # After the page, so that each key a page's events need is among these or sent before.
            await self._send_keys(connection, out, leader_epoch)
            if page:
                position = await self._send_page(connection, out, leader_epoch, page)
                continue
            await self._watch.wait()
            if self._clock.monotonic_s() - checked_s > CHECK_EVERY_S:
                checked_s = self._clock.monotonic_s()
                if await identity_of(self._bootstrap) != place.identity:
                    raise KafkaReplaced("Kafka was replaced")

    async def _send_page(
        self, connection: Connection, out: Outlet, leader_epoch: int, page: Sequence[Recorded]
    ) -> Position:
        offsets = await out.send([outgoing_of(row) for row in page], timeout_s=SEND_TIMEOUT_S)
        heads = _heads_after(page, offsets)
        await move(connection, leader_epoch, page[-1].position, heads)
        self._rows_sent += len(page)
        return page[-1].position

    async def _send_keys(self, connection: Connection, out: Outlet, leader_epoch: int) -> None:
        # Listed first and sent last: no key's end goes out before what replaced it.
        tombstones = await list_tombstones(connection, KEYS_MAX)
        if epochs := await list_unpublished_epochs(connection, KEYS_MAX):
            await out.send([epoch_record(epoch) for epoch in epochs], timeout_s=SEND_TIMEOUT_S)
            await mark_epochs_published(connection, leader_epoch, epochs)
        while keys := await list_unpublished_keys(connection, KEYS_MAX):
            await out.send([key_record(key) for key in keys], timeout_s=SEND_TIMEOUT_S)
            await mark_published(connection, leader_epoch, keys)
        if tombstones:
            ends = [_end_of(tombstone.record) for tombstone in tombstones]
            await out.send(ends, timeout_s=SEND_TIMEOUT_S)
            await mark_tombstones_published(connection, leader_epoch, tombstones)

    def _say(self, state: State, reason: str = "") -> None:
        self.status = PublisherStatus(state, reason, self._rows_sent)
        self._checked.set()

    def _backoff_s(self) -> float:
        self._failures += 1
        return self._jittered(BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1])

    def _jittered(self, pause_s: float) -> float:
        return pause_s * (0.5 + self._randomness.bits(16) / 2**17)


def _heads_after(
    page: Sequence[Recorded], offsets: Mapping[tuple[str, int], int]
) -> dict[tuple[str, int], Head]:
    """The head of every partition that records of this page went to."""
    rows_of: dict[tuple[str, int], list[Recorded]] = {}
    for row in page:
        rows_of.setdefault((row.topic, row.shard), []).append(row)
    heads: dict[tuple[str, int], Head] = {}
    for place, rows in rows_of.items():
        offset = offsets.get(place)
        if offset is not None:
            # A partition that holds these records alone has them one after another.
            sure = rows[0] if offset + 1 == len(rows) else rows[-1]
            heads[place] = Head(offset, rows[-1].hash, len(rows), sure.position)
    return heads


def _end_of(record: KeyRecord | EpochRecord) -> Outgoing:
    return key_record(record) if isinstance(record, KeyRecord) else epoch_record(record)
