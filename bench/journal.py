"""The log by itself: appends, replay in memory, and rebuilds of the read models."""

from __future__ import annotations

import time
from typing import Final

from backend.app.foundation import Foundation
from backend.folds import ALL_FOLDS
from backend.journal.reader import head, read_all, site_of
from bench.children import BenchmarkProblem
from bench.ledger_load import Filled, fill
from bench.meter import Meter, Spent
from bench.options import Options
from bench.rows import Figure, Row, at_least
from bench.site import BenchSite
from projections.declared import PROJECTIONS, Projection
from projections.rebuild import Progress, places_in_table, rebuild
from projections.tables import ensure_tables
from projections.verifying import Verifier
from schemas.event import START, Recorded

ROWS_MAX: Final = 200_000
"""Of the log, kept in memory for the replay."""
REPLAYED_PER_S: Final = at_least(100_000)
REBUILT_PER_S: Final = at_least(10_000)


async def journal_rows(site: BenchSite, options: Options) -> list[Row]:
    """Fills the log, then reads it again in every way."""
    rows = [await _appends(site, options, parallel) for parallel in (1, *options.parallel)]
    rows.append(await _replay(site, options))
    await ensure_tables(site.foundation.pool, PROJECTIONS)
    rows += [await _rebuild(site, projection) for projection in PROJECTIONS]
    return rows


async def _appends(site: BenchSite, options: Options, parallel: int) -> Row:
    """Held and settled requests through one writer, without HTTP: two commands, two events each."""
    meter = Meter({"postgres": [site.postgres_pid]})
    requests = options.journal_requests // (20 if parallel == 1 else 3)
    best: tuple[Filled, Spent] | None = None
    for _ in range(options.repetitions):
        before = meter.read()
        filled = await fill(site.foundation.writer, site.accounts, requests, parallel)
        spent = meter.since(before)
        if best is None or filled.seconds < best[0].seconds:
            best = filled, spent
    assert best is not None
    filled, spent = best
    figures = (
        Figure("appends", filled.appends / filled.seconds, "/s"),
        Figure("events", 2 * filled.requests_per_s, "/s"),
        Figure("requests", filled.requests_per_s, "/s"),
        Figure("writer_cpu", filled.cpu_s / requests * 1e6, "µs"),
        Figure("postgres_cpu", spent.groups_s["postgres"] / requests * 1e6, "µs"),
        Figure("request", parallel * filled.seconds / requests * 1e3, "ms"),
    )
    return Row(f"journal, {parallel} parallel", figures, others_share=spent.others_share)


async def _replay(site: BenchSite, options: Options) -> Row:
    """The verified fold over rows that are in memory: one core, no I/O."""
    async with site.foundation.pool.connection() as connection:
        site_id, _, _ = await site_of(connection)
        rows: list[Recorded] = []
        async for page in read_all(connection, START):
            rows += page
            if len(rows) >= ROWS_MAX:
                break
    meter = Meter({})
    best_s, shares = float("inf"), 0.0
    for _ in range(options.repetitions):
        verifier = Verifier(site_id, ALL_FOLDS)
        before, started_s = meter.read(), time.process_time()
        verifier.feed(rows)
        used_s = time.process_time() - started_s
        if used_s < best_s:
            best_s, shares = used_s, meter.since(before).others_share
        if verifier.events != len(rows) or verifier.faults():
            raise BenchmarkProblem(f"the replay found faults: {verifier.faults()[:3]}")
    figures = (
        Figure("events", len(rows), ""),
        Figure("verified", len(rows) / best_s, "/s", REPLAYED_PER_S),
        Figure("per_event", best_s / len(rows) * 1e6, "µs"),
    )
    return Row("replay in memory", figures, others_share=shares)


async def _rebuild(site: BenchSite, projection: Projection) -> Row:
    """The whole log into fresh tables, which then take the place of the old ones."""
    foundation: Foundation = site.foundation
    meter = Meter({"postgres": [site.postgres_pid]})
    async with foundation.pool.connection() as connection:
        log_rows = (await head(connection)).seq
    before, cpu_s = meter.read(), time.process_time()
    made = await rebuild(foundation.pool, projection, places_in_table(), foundation.clock, _ignore)
    cpu_s = time.process_time() - cpu_s
    spent = meter.since(before)
    events = max(1, made.events)
    figures = (
        Figure("log_rows", log_rows, ""),
        Figure("events", made.events, ""),
        Figure("rebuilt", made.events_per_s, "/s", REBUILT_PER_S),
        Figure("own_cpu", cpu_s / events * 1e6, "µs"),
        Figure("postgres_cpu", spent.groups_s["postgres"] / events * 1e6, "µs"),
    )
    return Row(f"rebuild {projection.name}", figures, others_share=spent.others_share)


def _ignore(progress: Progress) -> None:
    """Nobody watches."""
