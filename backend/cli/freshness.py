"""Makes a read table current before it is shown, or says that it is not."""

from __future__ import annotations

from typing import Final

from backend.cli.site import Site
from backend.folds import ALL_FOLDS
from backend.journal.consumer import (
    ForkedStream,
    MissingEvents,
    consume,
    place_in_table,
    place_of_table,
)
from backend.journal.reader import read_page
from backend.journal.view import load_states
from backend.kit.postgres import fetch_one
from projections.declared import find_projection
from projections.health import wait_for
from projections.tables import ensure_tables
from projections.target import Schema

READS_KAFKA: Final = """
SELECT EXISTS (SELECT 1 FROM consumer_places
    WHERE consumer = %(consumer)s AND topic NOT IN ('*', 'parked'))
"""


async def is_stale(site: Site, projection: str, account: str | None) -> bool:
    """Whether the table may lack something of the account (None: anything), after waiting for it.

    Where nothing else fills it, it is filled here first.
    """
    if not site.runs and not await reads_kafka(site, projection):
        return not await _caught_up(site, projection)
    if account is None:
        return False
    async with site.pool.connection() as connection:
        found = await load_states(connection, ALL_FOLDS, (account,))
    if account not in found:
        return False
    version = found[account][0]
    return (await wait_for(site.pool, site.clock, projection, account, version)).stale


async def reads_kafka(site: Site, projection: str) -> bool:
    """Whether the projection's live consumer takes its events from Kafka."""
    if site.settings.kafka.bootstrap_servers:
        return True
    async with site.pool.connection() as connection:
        row = await fetch_one(connection, READS_KAFKA, {"consumer": projection})
    return row is not None and bool(row[0])


async def _caught_up(site: Site, projection: str) -> bool:
    """Does what the projector would, from its place on; safe beside one that tails the table.

    False where it would halt: the audit says why.
    """
    await ensure_tables(site.pool)
    consumer = find_projection(projection).make(Schema.READ)
    async with site.pool.connection() as connection:
        position = await place_of_table(connection, consumer.name)
        while page := await read_page(connection, position):
            try:
                await consume(site.pool, consumer, page, place_in_table)
            except (ForkedStream, MissingEvents):
                return False
            position = page[-1].position
    return True
