"""Brings back from Kafka what the table lacks after an older backup was restored, in a new epoch.

It imports only events that continue a verified chain, and never overwrites one.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import msgspec
import structlog

from backend.journal.fold import Folds
from backend.journal.importing import Importer, OpenRequests, no_open_requests, wait_for_lock
from backend.journal.kafka_check import identity_of
from backend.journal.keys_survey import SealedThings, import_keys, survey_keys
from backend.journal.publisher_place import AHEAD, CLOSE_SITE, OPEN_SITE, RESTORING
from backend.journal.reader import site_of
from backend.kit.kafka import read_topics, recorded_of
from backend.kit.postgres import Connection, connect
from schemas.errors import SiteProblem
from schemas.event import EVENT_TOPICS

NEW_EPOCH: Final = "UPDATE site SET epoch = epoch + 1 RETURNING epoch"
FREE_STREAMS: Final = """
UPDATE streams SET last_xid = pg_current_xact_id() WHERE last_xid > pg_current_xact_id()
"""

_log = structlog.get_logger("journal.recover")


class Recovered(msgspec.Struct, frozen=True):
    """What `recover` did."""

    epoch: int
    events: int
    streams: int


async def recover(
    database_url: str,
    bootstrap: str,
    folds: Folds,
    open_requests: OpenRequests = no_open_requests,
    sealed: SealedThings | None = None,
) -> Recovered:
    """Imports every event that Kafka has and the table lacks, then lets the site write again.

    With `sealed` the data keys too: those of people who came after the backup, and the epochs that
    Kafka's records of the others are wrapped in by now.

    The site is read-only meanwhile. Run again after a failure, it goes on where it was. Raises
    SiteProblem where histories fork, a chain does not verify or a publisher still runs;
    KafkaUnavailable; MalformedRecord; psycopg errors.
    """
    await identity_of(bootstrap)
    async with await connect(database_url, application="suanpan recover") as connection:
        await wait_for_lock(
            connection, "a publisher is at work: stop it, then run `suanpan recover`"
        )
        site_id, _, reason = await site_of(connection)
        if reason == RESTORING:
            raise SiteProblem(RESTORING)
        await connection.execute(CLOSE_SITE, {"reason": AHEAD})
        epoch = await _new_epoch(connection)
        importer = Importer(connection, folds, site_id)
        try:
            events, touched = await _import(importer, bootstrap)
            await importer.complete(open_requests)
            if sealed is not None:
                survey = await survey_keys(bootstrap, sealed)
                await import_keys(connection, bootstrap, survey, sealed)
        finally:
            await importer.abandon()
        await connection.execute(OPEN_SITE, {"reason": AHEAD})
    _log.warning("recovered", epoch=epoch, events=events, streams=len(touched))
    return Recovered(epoch, events, len(touched))


async def _import(importer: Importer, bootstrap: str) -> tuple[int, set[str]]:
    """How many events were imported, and of which streams."""
    await importer.begin()
    events = 0
    touched: set[str] = set()
    async with aclosing(read_topics(bootstrap, EVENT_TOPICS)) as batches:
        async for batch in batches:
            fresh = await importer.take([recorded_of(record) for record in batch])
            events += len(fresh)
            touched.update(row.stream for row in fresh)
    return events, touched


async def _new_epoch(connection: Connection) -> int:
    """Restored transaction numbers may lie above the server's: order and guards begin anew."""
    async with connection.transaction():
        cursor = await connection.execute(NEW_EPOCH)
        row = await cursor.fetchone()
        assert row is not None, "a migrated database has its site row"
        await connection.execute(FREE_STREAMS)
    return row[0]
