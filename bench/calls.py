"""Calls that are not streamed: what one alone takes longer, and how many there can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from bench.children import Loaded, run_load
from bench.deployments import ANSWERING, Deployment, meter_of
from bench.meter import Meter
from bench.options import Options
from bench.plan import Plan, Target
from bench.rows import Figure, Goal, Row, at_least, at_most
from bench.shapes import CHAT
from bench.site import BenchSite, Role

OFFERED_PER_S: Final = 300
OFFERED_CONNECTIONS: Final = 16
ADDED_P50_MS: Final = at_most(2)
ADDED_P99_MS: Final = at_most(6)
CALLS_PER_API_CORE: Final = at_least(4_000)
CALLS_PER_S: Final = at_least(2_500)


async def lone_rows(
    site: BenchSite, deployment: Deployment, roles: Sequence[Role], options: Options
) -> list[Row]:
    """One call at a time, and at a low fixed rate: the relay beside the upstream alone."""
    plans = {
        "alone": Plan((site.upstream,), CHAT.model, options.seconds),
        f"{OFFERED_PER_S}/s": Plan(
            (site.upstream,),
            CHAT.model,
            options.seconds,
            parallel=OFFERED_CONNECTIONS,
            rate_per_s=OFFERED_PER_S,
        ),
    }
    return [
        await _lone(site, roles, f"lone call, {deployment.label}, {label}", plan, options)
        for label, plan in plans.items()
    ]


async def _lone(
    site: BenchSite, roles: Sequence[Role], name: str, direct: Plan, options: Options
) -> Row:
    meter = meter_of(site, roles)
    relayed = through_relay(direct, site, roles)
    pairs = [
        (await run_load(direct, meter), await run_load(relayed, meter))
        for _ in range(options.repetitions)
    ]
    straight, ours = min(
        pairs, key=lambda pair: pair[1].report.latency.p50_ms - pair[0].report.latency.p50_ms
    )
    here, there = ours.report.latency, straight.report.latency
    figures = (
        Figure("direct_p50", there.p50_ms, "ms"),
        Figure("direct_p99", there.p99_ms, "ms"),
        Figure("relay_p50", here.p50_ms, "ms"),
        Figure("relay_p99", here.p99_ms, "ms"),
        Figure("added_p50", here.p50_ms - there.p50_ms, "ms", ADDED_P50_MS),
        Figure("added_p99", here.p99_ms - there.p99_ms, "ms", ADDED_P99_MS),
    )
    return row_of(name, figures, ours, [loaded for pair in pairs for loaded in pair])


async def calls_rows(
    site: BenchSite,
    deployment: Deployment,
    roles: Sequence[Role],
    options: Options,
    kafka_pid: int | None = None,
) -> list[Row]:
    """As many calls as go through at a number of parallel ones."""
    meter = meter_of(site, roles, kafka_pid)
    rows: list[Row] = []
    for parallel in options.parallel:
        plan = through_relay(
            Plan((site.upstream,), CHAT.model, options.seconds, parallel), site, roles
        )
        name = f"calls, {deployment.label}, {parallel} parallel"
        rows.append(await _calls(name, plan, meter, options, with_goals=True))
    return rows


async def hot_account_row(
    site: BenchSite, deployment: Deployment, roles: Sequence[Role], options: Options
) -> Row:
    """All calls are one account's: what it costs when the writers meet on one stream."""
    plan = through_relay(
        Plan((site.upstream,), CHAT.model, options.seconds, options.parallel[0]), site, roles
    )
    one_account = msgspec.structs.replace(plan, keys=site.keys[:1])
    name = f"calls of one account, {deployment.label}, {plan.parallel} parallel"
    return await _calls(name, one_account, meter_of(site, roles), options, with_goals=False)


async def _calls(name: str, plan: Plan, meter: Meter, options: Options, *, with_goals: bool) -> Row:
    runs = [await run_load(plan, meter) for _ in range(options.repetitions)]
    best = max(runs, key=lambda loaded: loaded.report.calls)
    return row_of(name, _throughput(best, with_goals=with_goals), best, runs)


async def direct_rows(site: BenchSite, options: Options) -> list[Row]:
    """The same load straight to the upstream: what the other rows can at most be."""
    rows: list[Row] = []
    for parallel in options.parallel:
        plan = Plan((site.upstream,), CHAT.model, options.seconds, parallel)
        loaded = await run_load(plan, Meter({"upstream": [site.upstream_pid]}))
        figures = _throughput(loaded, with_goals=False)
        rows.append(row_of(f"calls, direct, {parallel} parallel", figures, loaded, [loaded]))
    return rows


def through_relay(direct: Plan, site: BenchSite, roles: Sequence[Role]) -> Plan:
    """The same calls made to all roles that answer, with the accounts' keys in turn."""
    targets: tuple[Target, ...] = tuple(role.target for role in roles if role.name in ANSWERING)
    return msgspec.structs.replace(direct, targets=targets, keys=site.keys)


def row_of(name: str, figures: Sequence[Figure], best: Loaded, runs: Sequence[Loaded]) -> Row:
    errors = [error for loaded in runs for error in loaded.report.first_errors]
    return Row(
        name,
        tuple(figures),
        errors=sum(loaded.report.errors for loaded in runs),
        first_errors=tuple(dict.fromkeys(errors)),
        others_share=best.spent.others_share,
    )


def per_unit_us(loaded: Loaded, units: int) -> list[Figure]:
    """Processor time of each group and of the load generator, per call or chunk."""
    spent_s = {**loaded.spent.groups_s, "load": loaded.report.cpu_s}
    return [
        Figure(f"{group}_cpu", seconds / max(1, units) * 1e6, "µs")
        for group, seconds in spent_s.items()
        if seconds > 0
    ]


def per_core(loaded: Loaded, units: int, goal: Goal | None) -> list[Figure]:
    """Calls or chunks that one core of API would do: one over the processor time of each."""
    api_s = loaded.spent.groups_s.get("api", 0.0)
    return [Figure("per_api_core", units / api_s, "/s", goal)] if api_s > 0 else []


def _throughput(loaded: Loaded, *, with_goals: bool) -> list[Figure]:
    report = loaded.report
    goal = CALLS_PER_S if with_goals else None
    core_goal = CALLS_PER_API_CORE if with_goals else None
    return [
        Figure("calls", report.calls_per_s, "/s", goal),
        *per_core(loaded, report.calls, core_goal),
        *per_unit_us(loaded, report.calls),
        Figure("p50", report.latency.p50_ms, "ms"),
        Figure("p99", report.latency.p99_ms, "ms"),
    ]
