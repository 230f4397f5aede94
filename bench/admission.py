"""What letting a request in costs on an account that is new and on one with a long history."""

from __future__ import annotations

import time
from array import array
from statistics import median
from typing import Final

from backend.journal.reader import head
from backend.journal.writer import Writer
from bench.children import BenchmarkProblem
from bench.ledger_load import fill, hold_call, settle_call
from bench.meter import Meter
from bench.options import Options
from bench.rows import Figure, Row, at_most
from bench.site import BenchSite
from bench.spread import spread_of

RUNS: Final = 5
YOUNG_EVENTS: Final = 1_000
FILLED_BY: Final = 128
RATIO: Final = at_most(1.2)


async def admission_rows(site: BenchSite, options: Options) -> list[Row]:
    """The median over all runs of one run's ratio of medians. Raises BenchmarkProblem."""
    writer = site.foundation.writer
    young, old = site.accounts
    await fill(writer, (young,), YOUNG_EVENTS // 2, 1)
    await fill(writer, (old,), options.history_events // 2, FILLED_BY)
    await _expect_events(site, YOUNG_EVENTS + options.history_events)
    meter = Meter({"postgres": [site.postgres_pid]})
    before = meter.read()
    runs = [await _run(writer, (young, old), options.timed_holds) for _ in range(RUNS)]
    ratios = [after_ms / first_ms for first_ms, after_ms in runs]
    figures = (
        Figure("p50 young", median(first_ms for first_ms, _ in runs), "ms"),
        Figure("p50 old", median(after_ms for _, after_ms in runs), "ms"),
        Figure("ratio", median(ratios), "", RATIO),
        Figure("lowest", min(ratios), ""),
        Figure("highest", max(ratios), ""),
    )
    name = f"hold after {YOUNG_EVENTS:,} and {options.history_events:,} events"
    return [Row(name, figures, others_share=meter.since(before).others_share)]


async def _run(writer: Writer, accounts: tuple[str, str], holds: int) -> tuple[float, float]:
    """p50 of each account's holds: one account, the other, and again the other way round.

    Whatever else the machine does meanwhile befalls both. Each is settled, so that no two are open.
    """
    samples = {account: array("q") for account in accounts}
    for number in range(holds):
        for account in accounts if number % 2 == 0 else reversed(accounts):
            begun_ns = time.perf_counter_ns()
            request_id = await hold_call(writer, account)
            samples[account].append(time.perf_counter_ns() - begun_ns)
            await settle_call(writer, account, request_id)
    first, other = (spread_of(samples[account]).p50_ms for account in accounts)
    return first, other


async def _expect_events(site: BenchSite, events: int) -> None:
    """The histories are as long as the row says."""
    async with site.foundation.pool.connection() as connection:
        newest = await head(connection)
    if newest.seq < events:
        raise BenchmarkProblem(f"the log ends at {newest.seq}, before {events} events")
