"""Wires the routes of the API that read: records, the ledger, exports, and how the site is."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from backend.app.exploring import explorer_of
from backend.app.foundation import Foundation
from backend.http.api.admin_records import admin_record_routes
from backend.http.api.exports import admin_export_routes, export_routes
from backend.http.api.operations import (
    OperationsDoor,
    ParkedStream,
    ProjectionFigures,
    PublisherFigures,
    SealFigures,
    SiteFigures,
    operation_routes,
)
from backend.http.api.record_params import RecordsDoor
from backend.http.api.records import record_routes
from backend.journal.parking import list_parked
from backend.journal.reader import site_of
from backend.journal.seal import BrokenSeal, Seal
from backend.kit.postgres import fetch_one
from backend.kit.time_text import iso_text
from backend.ledger.exports import ExportFolder
from projections.declared import live_consumers
from projections.health import alarms_of, list_lags, wait_for
from projections.sealed_files import SealFolder

UNPUBLISHED: Final = """
WITH newest AS MATERIALIZED (
    SELECT epoch, xid, seq, at FROM event_log
    ORDER BY epoch DESC, xid DESC, seq DESC LIMIT %(rows_max)s
)
SELECT count(*), greatest(0, coalesce(
    extract(epoch FROM clock_timestamp() - min(newest.at)) * 1000, 0))::bigint
FROM newest, publisher p WHERE (newest.epoch, newest.xid, newest.seq) > (p.epoch, p.xid, p.seq)
"""
ROWS_MAX: Final = 10_000
PUBLISHER_LATE_MS: Final = 60_000


def records_api(base: Foundation) -> list[Any]:
    """Route handlers."""

    async def is_stale(projection: str, account: str, version: int) -> bool:
        return (await wait_for(base.pool, base.clock, projection, account, version)).stale

    door = RecordsDoor(
        base.pool,
        base.clock,
        base.randomness,
        explorer_of(base.settings, base.pool, base.clock),
        ExportFolder(base.settings.data_dir),
        is_stale,
    )
    operations = OperationsDoor(base.pool, base.clock, base.randomness, lambda: site_figures(base))
    return [
        *record_routes(door),
        *admin_record_routes(door),
        *export_routes(door),
        *admin_export_routes(door),
        *operation_routes(operations),
    ]


async def site_figures(base: Foundation) -> SiteFigures:
    """What the database and the data folder say: the same in every role. Raises psycopg errors."""
    has_kafka = base.settings.kafka.bootstrap_servers is not None
    async with base.pool.connection() as connection:
        lags = await list_lags(connection, live_consumers())
        waiting = await list_parked(connection)
        _, _, read_only = await site_of(connection)
        behind = None
        if has_kafka:
            behind = await fetch_one(connection, UNPUBLISHED, {"rows_max": ROWS_MAX})
    seal, broken = await asyncio.to_thread(_newest, SealFolder(base.settings.data_dir))
    publisher = None if behind is None else PublisherFigures(*behind)
    warnings = [*alarms_of(lags), *broken]
    if read_only is not None:
        warnings.append(f"the site is read-only: {read_only}")
    if publisher is not None and publisher.behind_ms > PUBLISHER_LATE_MS:
        warnings.append(f"publisher: {publisher.behind_ms // 1000} s behind")
    return SiteFigures(
        read_only=read_only,
        projections=[
            ProjectionFigures(lag.consumer, lag.rows, lag.behind_ms, lag.parked, lag.events)
            for lag in lags
        ],
        parked=[ParkedStream(one.consumer, one.stream, one.version, one.reason) for one in waiting],
        publisher=publisher,
        seals=seal,
        warnings=warnings,
    )


def _newest(folder: SealFolder) -> tuple[SealFigures | None, list[str]]:
    try:
        seal = folder.newest()
    except BrokenSeal as error:
        return None, [str(error)]
    return None if seal is None else _figures(seal), []


def _figures(seal: Seal) -> SealFigures:
    return SealFigures(seal.number, iso_text(seal.made_at_us), seal.events, seal.streams)
