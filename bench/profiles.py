"""Where an API process spends its processor time: a sampled profile of calls, and of streams."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.calls import through_relay
from bench.children import run_load, running_upstream
from bench.deployments import ONE_API, meter_of
from bench.options import Options
from bench.plan import Plan
from bench.sampler import BEGIN, Profile
from bench.shapes import CHAT, PACED, Shape
from bench.site import BenchSite, bench_folder, opened_site, roles_of

PARALLEL: Final = 32
LINES_SHOWN: Final = 45
AREAS_SHOWN: Final = 20
OURS: Final = frozenset({"backend", "bench", "projections", "schemas", "workers"})


async def show_profiles(options: Options, console: Console) -> None:
    """One API process under load, sampled: functions by their own time and with what they call."""
    async with running_upstream() as upstream:
        with bench_folder() as folder:
            async with opened_site(folder, options.accounts, upstream) as site:
                for shape, streams in ((CHAT, 0), (PACED, options.streams)):
                    profile = await _profiled(site, shape, streams, options)
                    what = f"{streams} streams" if streams else f"{PARALLEL} parallel calls"
                    what = f"{what}, {profile.samples} samples"
                    console.print(_areas(what, profile))
                    console.print(_functions(what, profile))


async def _profiled(site: BenchSite, shape: Shape, streams: int, options: Options) -> Profile:
    file: Path = site.folder / f"{shape.model}.profile"
    async with roles_of(site, ONE_API.roles, profile=file) as roles:
        plan = Plan(
            (site.upstream,),
            shape.model,
            options.seconds * options.repetitions,
            streams or PARALLEL,
            events=shape.events if streams else 0,
            warm_s=1.0,
        )
        begin = partial(os.kill, roles[0].pid, BEGIN)
        await run_load(through_relay(plan, site, roles), meter_of(site, roles), at_ready=begin)
    return _read(file)


def _read(file: Path) -> Profile:
    return msgspec.json.decode(file.read_bytes(), type=Profile)


def _areas(title: str, profile: Profile) -> Table:
    """Own time by package; ours by folder."""
    areas: Counter[str] = Counter()
    for stack, count in profile.stacks:
        areas[_area(stack[-1])] += count
    table = Table("%", "code", title=title)
    for name, count in areas.most_common(AREAS_SHOWN):
        table.add_row(_percent(count, profile), name)
    return table


def _area(name: str) -> str:
    path = name.partition(":")[0].split("/")
    if path[0] in OURS:
        return "/".join(path[:-1])
    return path[0] if len(path) > 1 else f"python {path[0]}"


def _functions(title: str, profile: Profile) -> Table:
    own: Counter[str] = Counter()
    with_called: Counter[str] = Counter()
    for stack, count in profile.stacks:
        own[stack[-1]] += count
        for name in set(stack):
            with_called[name] += count
    table = Table("own %", "with called %", "function", title=title)
    for name, count in own.most_common(LINES_SHOWN):
        table.add_row(_percent(count, profile), _percent(with_called[name], profile), name)
    return table


def _percent(count: int, profile: Profile) -> str:
    return f"{100 * count / max(1, profile.samples):.1f}"
