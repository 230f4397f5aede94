"""The load generator, in a process of its own: `python -m bench.load` reads a plan from stdin.

It prints "ready" once warm, waits for "go", measures, prints a report. Bounded in count and time.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import uvloop

from bench.caller import Caller
from bench.lifetime import end_with_parent
from bench.plan import GO, READY, Plan, Report, Target
from bench.session import Session

CONNECT_TIMEOUT_S: Final = 10.0
GO_TIMEOUT_S: Final = 60.0


async def run_load(
    plan: Plan, wait_for_go: Callable[[], Awaitable[None]], tell: Callable[[Report], None]
) -> None:
    """Connects, warms up, awaits `wait_for_go`, measures, tells the report, then drains."""
    loop = asyncio.get_running_loop()
    session = Session(plan, loop)
    targets = [plan.targets[number % len(plan.targets)] for number in range(plan.parallel)]
    session.start([await _open(session, target, loop) for target in targets])
    await asyncio.sleep(plan.warm_s)
    gc.collect()
    gc.freeze()
    await wait_for_go()
    session.measure()
    # Told before the drain: whoever reads processor times around the run must not count it.
    tell(await session.over())
    await session.drain()


async def _open(session: Session, target: Target, loop: asyncio.AbstractEventLoop) -> Caller:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, caller = await loop.create_connection(lambda: Caller(session), target.host, target.port)
    return caller


async def _wait_on_stdin() -> None:
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(GO_TIMEOUT_S):
        line = await loop.run_in_executor(None, sys.stdin.buffer.readline)
    if line != GO:
        raise SystemExit("the benchmark went away")


def _tell(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    uvloop.run(run_load(plan, _wait_on_stdin, _tell))


if __name__ == "__main__":
    end_with_parent()
    main()
