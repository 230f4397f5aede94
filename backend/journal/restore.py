"""Makes an empty database the site again that Kafka holds: the log, its streams and wrapped keys.

The site stays read-only until the last step. It makes no read model and opens nothing sealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final
from uuid import UUID

import msgspec
import structlog

from backend.journal.fold import Folds
from backend.journal.importing import Importer, OpenRequests, no_open_requests, wait_for_lock
from backend.journal.kafka_check import identity_of
from backend.journal.keys_survey import KeysSurvey, SealedThings, import_keys, survey_keys
from backend.journal.keys_topic import SiteRecord
from backend.journal.publisher_place import RESTORING, Head, begin_again, lead, move
from backend.journal.wake import NOTIFY
from backend.kit.kafka import Record, count_records, last_records, read_topics, recorded_of
from backend.kit.kafka_admin import KEYS_TOPIC, ClusterIdentity, partitions_of
from backend.kit.postgres import Connection, connect, fetch_one
from schemas.errors import SiteProblem
from schemas.event import CATALOG, EVENT_TOPICS, IDENTITY, SHARDS, Position, Recorded

FIND_SITE: Final = """
SELECT site_id, read_only_reason, EXISTS (SELECT FROM event_log) FROM site FOR UPDATE
"""
BECOME: Final = """
UPDATE site SET site_id = %(site_id)s, epoch = greatest(epoch, %(epoch)s),
    read_only_reason = %(reason)s
"""
FIND_OTHERS: Final = """
SELECT application_name FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND application_name LIKE 'suanpan%' LIMIT 1
"""
DO_NOT_WAIT_FOR_DISK: Final = "SELECT set_config('synchronous_commit', 'off', false)"
WAIT_FOR_DISK: Final = "SELECT set_config('synchronous_commit', 'on', false)"
KEYS_PUBLISHED: Final = """
WITH epochs AS (UPDATE key_epochs SET published = true WHERE NOT published)
UPDATE data_keys SET published = true WHERE NOT published
"""
LAST: Final = """
SELECT epoch, xid::text::bigint, seq FROM event_log
ORDER BY epoch DESC, event_log.xid DESC, seq DESC LIMIT 1
"""
OPEN: Final = """
UPDATE site SET epoch = %(epoch)s, read_only_reason = NULL WHERE read_only_reason = %(reason)s
"""
COUNT: Final = """
SELECT (SELECT count(*) FROM event_log), (SELECT count(*) FROM streams),
    (SELECT count(*) FROM data_keys)
"""

BATCH_RECORDS: Final = 8_000
OTHERS_ATTEMPTS_MAX: Final = 50
OTHERS_EVERY_S: Final = 0.1

Progress = Callable[[int, int], None]
"""`progress(done, total)`, in records."""

_log = structlog.get_logger("journal.restore")


class Restored(msgspec.Struct, frozen=True):
    """What the database holds now. `keys_missing`: people whose data key is nowhere, and who are
    not forgotten either: what was sealed with it cannot be read.
    """

    site_id: str
    epoch: int
    events: int
    streams: int
    data_keys: int
    keys_missing: int


class _Survey(msgspec.Struct, frozen=True):
    """What Kafka says before anything is written."""

    site_id: UUID
    identity: ClusterIdentity
    records: int
    keys: KeysSurvey
    epoch: int
    """The new one: above that of each partition's last record."""


@asynccontextmanager
async def restoring(
    database_url: str, bootstrap: str, folds: Folds, sealed: SealedThings
) -> AsyncGenerator[Restore]:
    """A restore that nobody else can begin meanwhile, on a migrated database.

    Raises SiteProblem, with nothing written, where the database has events of its own or is used,
    or Kafka holds no site that SECRET belongs to; KafkaUnavailable; MalformedRecord; psycopg's.
    """
    async with await connect(database_url, application="suanpan restore") as connection:
        await wait_for_lock(
            connection, "a publisher is at work on this database: stop it before a restore"
        )
        await _expect_alone(connection)
        await _expect_empty(connection)
        survey = await _survey(bootstrap, sealed)
        await _become(connection, survey)
        yield Restore(connection, bootstrap, folds, sealed, survey)


class Restore:
    """`import_log`, then whatever else the site needs, then `finish`: only that opens the site."""

    def __init__(
        self,
        connection: Connection,
        bootstrap: str,
        folds: Folds,
        sealed: SealedThings,
        survey: _Survey,
    ) -> None:
        self._connection: Final = connection
        self._bootstrap: Final = bootstrap
        self._folds: Final = folds
        self._sealed: Final = sealed
        self._survey: Final = survey
        self._heads: Final[dict[tuple[str, int], Head]] = {}
        self._epoch_max = 0

    async def import_log(
        self, progress: Progress, open_requests: OpenRequests = no_open_requests
    ) -> int:
        """Imports what the table lacks, the keys last; returns how many events that were.

        Raises SiteProblem naming the first record that does not verify; as `restoring`.
        """
        # A crash of the server loses only what the next run brings again.
        await self._connection.execute(DO_NOT_WAIT_FOR_DISK)
        importer = Importer(self._connection, self._folds, self._survey.site_id)
        try:
            events = await self._import_events(importer, progress)
            await importer.complete(open_requests)
        finally:
            await importer.abandon()
        await import_keys(self._connection, self._bootstrap, self._survey.keys, self._sealed)
        return events

    async def finish(self) -> Restored:
        """Sets the publisher's place at Kafka's end and opens the site in its new epoch."""
        await self._connection.execute(WAIT_FOR_DISK)
        identity = self._survey.identity
        if await identity_of(self._bootstrap) != identity:
            raise SiteProblem("Kafka was replaced during the restore: begin with an empty database")
        end = await self._end()
        async with self._connection.transaction():
            place = await lead(self._connection)
            await begin_again(self._connection, place.leader_epoch, identity)
            await move(self._connection, place.leader_epoch, end, self._heads)
            await self._connection.execute(KEYS_PUBLISHED)
            await self._connection.execute(OPEN, {"epoch": end.epoch, "reason": RESTORING})
            await self._connection.execute(NOTIFY)
        events, streams, keys = await fetch_one(self._connection, COUNT) or (0, 0, 0)
        missing = await self._sealed.count_missing(self._connection)
        _log.warning("restored", epoch=end.epoch, events=events, streams=streams)
        return Restored(str(self._survey.site_id), end.epoch, events, streams, keys, missing)

    async def _end(self) -> Position:
        """The publisher's place: after every row here and, by epoch, after every record there."""
        if self._epoch_max >= self._survey.epoch:
            # Kafka was filled from a backup at some time: an epoch that was lost lies deep in it.
            return Position(self._epoch_max + 1, 0, 0)
        row = await fetch_one(self._connection, LAST)
        assert row is not None, "there was something to import"
        return Position(*row)

    async def _import_events(self, importer: Importer, progress: Progress) -> int:
        await importer.begin()
        events = done = 0
        reading = read_topics(self._bootstrap, EVENT_TOPICS, records_max=BATCH_RECORDS)
        async with aclosing(reading) as batches:
            async for batch in batches:
                events += len(await importer.take(self._read(batch)))
                done += len(batch)
                progress(done, self._survey.records)
        return events

    def _read(self, batch: Sequence[Record]) -> list[Recorded]:
        """The rows; what `finish` needs to know of them is remembered."""
        rows = [recorded_of(record) for record in batch]
        for record, row in zip(batch, rows, strict=True):
            self._heads[record.topic, record.partition] = Head(record.offset, row.hash)
            self._epoch_max = max(self._epoch_max, row.epoch)
        return rows


async def _expect_alone(connection: Connection) -> None:
    """A process that runs has the site's old id in memory, and would write what forks."""
    name = ""
    for _ in range(OTHERS_ATTEMPTS_MAX):
        row = await fetch_one(connection, FIND_OTHERS)
        if row is None:
            return
        name = row[0]
        await asyncio.sleep(OTHERS_EVERY_S)
    raise SiteProblem(f"`{name}` is using this database: stop it before a restore")


async def _expect_empty(connection: Connection) -> None:
    async with connection.transaction():
        row = await fetch_one(connection, FIND_SITE)
    assert row is not None, "a migrated database has its site row"
    if row[2] and row[1] != RESTORING:
        raise SiteProblem(
            "this database has events already: `suanpan recover` imports what it lacks, and a "
            "restore needs an empty database"
        )


async def _become(connection: Connection, survey: _Survey) -> None:
    """From here on the database is this site's, and read-only; a restore that was cut off goes on.

    Looked at again under the row's lock.
    """
    async with connection.transaction():
        row = await fetch_one(connection, FIND_SITE)
        assert row is not None, "a migrated database has its site row"
        if row[2] and (row[0], row[1]) != (survey.site_id, RESTORING):
            raise SiteProblem(
                "this database holds a part of another site's log: restore into an empty one"
            )
        given = {"site_id": survey.site_id, "epoch": survey.epoch, "reason": RESTORING}
        await connection.execute(BECOME, given)


async def _survey(bootstrap: str, sealed: SealedThings) -> _Survey:
    """Raises SiteProblem where nothing can be restored from this Kafka with this secret."""
    await _check_partitions(bootstrap)
    identity = await identity_of(bootstrap)
    records = await count_records(bootstrap, EVENT_TOPICS)
    if not records:
        raise SiteProblem("Kafka holds no event of a site: there is nothing to restore")
    keys = await survey_keys(bootstrap, sealed)
    opened = await _opens_an_event(bootstrap, sealed) if keys.opened is None else keys.opened
    if not opened:
        raise SiteProblem(
            "SECRET is not the one this site was made with: what Kafka holds does not open with it"
        )
    epoch = await _last_epoch(bootstrap) + 1
    return _Survey(_expect_site(keys.site), identity, records, keys, epoch)


async def _last_epoch(bootstrap: str) -> int:
    """The highest of the partitions' last records: as a rule, of all records."""
    last = [await last_records(bootstrap, topic) for topic in EVENT_TOPICS]
    records = [record for found in last for record in found.values() if record is not None]
    return max(recorded_of(record).epoch for record in records)


async def _check_partitions(bootstrap: str) -> None:
    wanted = (*EVENT_TOPICS, KEYS_TOPIC)
    found = await partitions_of(bootstrap, wanted)
    for topic in wanted:
        if topic not in found:
            raise SiteProblem(f"Kafka has no topic {topic}: there is no site to restore")
        if found[topic] != SHARDS:
            raise SiteProblem(
                f"Kafka topic {topic} has {found[topic]} partitions where a site has {SHARDS}: "
                "it is not as the publisher made it"
            )


def _expect_site(site: SiteRecord | None) -> UUID:
    if site is None:
        raise SiteProblem(
            f"Kafka's {KEYS_TOPIC} does not say which site this is, as every publisher does when "
            "it starts"
        )
    if site.shards != SHARDS:
        raise SiteProblem(f"the site in Kafka has {site.shards} shards, this version {SHARDS}")
    return site.site_id


async def _opens_an_event(bootstrap: str, sealed: SealedThings) -> bool:
    """For a log without any key: whether the first sealed thing in it opens, if there is one."""
    async with aclosing(read_topics(bootstrap, (CATALOG, IDENTITY))) as batches:
        async for batch in batches:
            for record in batch:
                opened = sealed.opens_event(recorded_of(record))
                if opened is not None:
                    return opened
    return True
