"""Streamed answers: chunks per second, what one costs, how long it is under way, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.calls import per_core, per_unit_us, row_of, through_relay
from bench.children import Loaded, run_load
from bench.deployments import ANSWERING, Deployment, meter_of
from bench.meter import Meter
from bench.options import Options
from bench.plan import Plan
from bench.processes import pss_kb
from bench.rows import Figure, Goal, Row, at_least, at_most
from bench.shapes import CHAT, PACED, SLOW, STEADY, Shape
from bench.site import BenchSite, Role

CHUNKS_PER_API_CORE: Final = at_least(20_000)
KB_PER_STREAM: Final = at_most(40)
SETTLED_S: Final = 1.0


async def stream_rows(
    site: BenchSite, deployment: Deployment, roles: Sequence[Role], options: Options
) -> list[Row]:
    """Many streams at once: at a rate that leaves room, and at more than a core can do."""
    rows: list[Row] = []
    for shape, goal in ((STEADY, None), (PACED, CHUNKS_PER_API_CORE)):
        offered = options.streams * 1000 // shape.gap_ms
        name = f"{options.streams} streams, {offered:,} chunks/s offered"
        direct = _plan(site, shape, options)
        straight = await run_load(direct, Meter({"upstream": [site.upstream_pid]}))
        rows.append(row_of(f"{name}, direct", _figures(straight, None), straight, [straight]))
        relayed = through_relay(direct, site, roles)
        meter = meter_of(site, roles)
        runs = [await run_load(relayed, meter) for _ in range(options.repetitions)]
        # By what came through: a process that is kept waiting reads more at once, and looks cheap.
        best = max(runs, key=lambda loaded: loaded.report.chunks)
        rows.append(row_of(f"{name}, {deployment.label}", _figures(best, goal), best, runs))
    return rows


def _plan(site: BenchSite, shape: Shape, options: Options) -> Plan:
    length_s = shape.events * shape.gap_ms / 1000
    return Plan(
        (site.upstream,),
        shape.model,
        options.seconds,
        options.streams,
        events=shape.events,
        # One whole length, so that streams end and begin evenly while it is measured.
        warm_s=max(1.0, length_s),
        drain_s=2 * length_s + 3,
    )


def _figures(loaded: Loaded, goal: Goal | None) -> list[Figure]:
    report = loaded.report
    return [
        Figure("chunks", report.chunks_per_s, "/s"),
        *per_core(loaded, report.chunks, goal),
        *per_unit_us(loaded, report.chunks),
        Figure("transit_p50", report.transit.p50_ms, "ms"),
        Figure("transit_p99", report.transit.p99_ms, "ms"),
        Figure("first_byte_p50", report.first_byte.p50_ms, "ms"),
    ]


async def memory_rows(
    site: BenchSite, deployment: Deployment, roles: Sequence[Role], options: Options
) -> list[Row]:
    """Open streams that hardly do anything: what each keeps in the API process.

    Needs a process that has served little: memory freed by earlier work would hide it.
    """
    api = next(role.pid for role in roles if role.name in ANSWERING)
    meter = meter_of(site, roles)
    warming = through_relay(Plan((site.upstream,), CHAT.model, 0.5, 16), site, roles)
    await run_load(warming, meter)
    before_kb = pss_kb(api)
    plan = Plan(
        (site.upstream,), SLOW.model, SETTLED_S, options.slow_streams,
        events=SLOW.events, warm_s=3.0, drain_s=0,
    )  # fmt: skip
    during_kb = 0

    def look() -> None:
        nonlocal during_kb
        during_kb = pss_kb(api)

    loaded = await run_load(through_relay(plan, site, roles), meter, at_ready=look)
    streams = max(1, loaded.report.open_now)
    figures = (
        Figure("streams", streams, ""),
        Figure("before", before_kb / 1024, "MB"),
        Figure("during", during_kb / 1024, "MB"),
        Figure("per_stream", (during_kb - before_kb) / streams, "KB", KB_PER_STREAM),
    )
    return [row_of(f"memory, {deployment.label}, slow streams", figures, loaded, [loaded])]
