"""One run: starts what is measured, measures part by part, stops everything."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.admission import admission_rows
from bench.calls import calls_rows, direct_rows, hot_account_row, lone_rows
from bench.children import running_upstream
from bench.deployments import FOUR_API, ONE_API, SERVE, with_kafka
from bench.idle import idle_rows
from bench.journal import journal_rows
from bench.options import Options
from bench.rows import Row
from bench.site import BenchSite, bench_folder, opened_site, roles_of
from bench.streams import memory_rows, stream_rows
from scripts.kafka import Broker, KafkaProblem, fetch

ROOT: Final = Path(__file__).resolve().parents[1]
ON_ONE_SITE: Final = frozenset({"lone", "calls", "streams", "memory", "journal"})

Tell = Callable[[Row], None]


async def run(options: Options, tell: Tell) -> None:
    """All parts that were asked for; rows are told as soon as they are there."""

    def note(found: list[Row]) -> None:
        for row in found:
            tell(row)

    async with running_upstream() as upstream:
        if ON_ONE_SITE & set(options.parts):
            with bench_folder() as folder:
                async with opened_site(folder, options.accounts, upstream) as site:
                    await _on_one_site(site, options, note)
        if "admission" in options.parts:
            with bench_folder() as folder:
                async with opened_site(folder, 2, upstream) as site:
                    note(await admission_rows(site, options))
        if "kafka" in options.parts:
            note(await _kafka_rows(options, upstream))
    if "idle" in options.parts:
        with bench_folder() as folder:
            note(await idle_rows(folder, options))


async def _on_one_site(
    site: BenchSite, options: Options, note: Callable[[list[Row]], None]
) -> None:
    parts = set(options.parts)
    if "memory" in parts:
        async with roles_of(site, ONE_API.roles) as roles:
            note(await memory_rows(site, ONE_API, roles, options))
    if "calls" in parts:
        note(await direct_rows(site, options))
    if parts & {"lone", "calls"}:
        async with roles_of(site, SERVE.roles) as roles:
            if "lone" in parts:
                note(await lone_rows(site, SERVE, roles, options))
            if "calls" in parts:
                note(await calls_rows(site, SERVE, roles, options))
    if parts & {"lone", "calls", "streams"}:
        async with roles_of(site, ONE_API.roles) as roles:
            if "lone" in parts:
                note(await lone_rows(site, ONE_API, roles, options))
            if "calls" in parts:
                note(await calls_rows(site, ONE_API, roles, options))
                note([await hot_account_row(site, ONE_API, roles, options)])
            if "streams" in parts:
                note(await stream_rows(site, ONE_API, roles, options))
    if "calls" in parts:
        async with roles_of(site, FOUR_API.roles) as roles:
            note(await calls_rows(site, FOUR_API, roles, options))
            note([await hot_account_row(site, FOUR_API, roles, options)])
    if "journal" in parts:
        note(await journal_rows(site, options))


async def _kafka_rows(options: Options, upstream: tuple[int, int]) -> list[Row]:
    """Calls on a site whose log is carried by a real broker."""
    try:
        async with _broker() as broker:
            return await _rows_with(broker, options, upstream)
    except KafkaProblem as problem:
        return [Row("calls, Kafka", skipped=str(problem))]


async def _rows_with(broker: Broker, options: Options, upstream: tuple[int, int]) -> list[Row]:
    rows: list[Row] = []
    with bench_folder() as folder:
        async with opened_site(folder, options.accounts, upstream, broker.bootstrap) as site:
            for deployment in (with_kafka(ONE_API), with_kafka(FOUR_API)):
                async with roles_of(site, deployment.roles) as roles:
                    rows += await calls_rows(site, deployment, roles, options, broker.pid)
    return rows


@asynccontextmanager
async def _broker() -> AsyncGenerator[Broker]:
    with tempfile.TemporaryDirectory(prefix="suanpan-bench-kafka-") as folder:
        # In the main thread and blocking: nothing else goes on yet, and it dies with its thread.
        broker = Broker(fetch(ROOT), Path(folder))
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()
