"""The benchmark's own child processes: the mock upstream, load generators, roles of the site."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench.meter import Meter, Spent
from bench.plan import GO, READY, REPORT_BYTES_MAX, Plan, Report

ROOT: Final = Path(__file__).resolve().parents[1]
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
SPARE_S: Final = 60.0
"""What a load may take beyond its own times before it is given up."""


class BenchmarkProblem(Exception):
    """The measurement cannot be made; the sentence says why."""


class Loaded(msgspec.Struct, frozen=True):
    """A load's report, and who used the processors meanwhile."""

    report: Report
    spent: Spent


@asynccontextmanager
async def running(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A child with pipes, ended at the end: asked with SIGTERM, then killed."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("ab")) if log is not None else None
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            limit=REPORT_BYTES_MAX,
        )
        try:
            yield process
        finally:
            await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _nothing() -> None:
    """What is to be done when most loads are warm."""


@asynccontextmanager
async def running_upstream() -> AsyncGenerator[tuple[int, int]]:
    """(process id, port) of a mock upstream."""
    async with running((sys.executable, "-m", "bench.upstream")) as process:
        port = (await line_of(process, START_TIMEOUT_S)).strip()
        yield process.pid, int(port)


async def run_load(plan: Plan, meter: Meter, at_ready: Callable[[], None] = _nothing) -> Loaded:
    """Runs a load in a process of its own; `at_ready` is called when it is warm.

    Raises BenchmarkProblem when it comes to nothing.
    """
    async with running((sys.executable, "-m", "bench.load")) as process:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        ready = await line_of(process, START_TIMEOUT_S + plan.warm_s)
        if ready != READY:
            raise BenchmarkProblem(f"the load generator did not start: {ready!r}")
        at_ready()
        before = meter.read()
        process.stdin.write(GO)
        told = await line_of(process, plan.seconds + SPARE_S)
        spent = meter.since(before)
        report = msgspec.json.decode(told, type=Report)
        async with asyncio.timeout(plan.drain_s + SPARE_S):
            await process.communicate()
        return Loaded(report, spent)


async def line_of(process: asyncio.subprocess.Process, timeout_s: float) -> bytes:
    """The next line a child prints. Raises BenchmarkProblem if it does not."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            line = await process.stdout.readline()
    except TimeoutError:
        raise BenchmarkProblem(
            f"process {process.pid} said nothing for {timeout_s:.0f} s"
        ) from None
    if not line:
        raise BenchmarkProblem(f"process {process.pid} ended without a word; see its log")
    return line
