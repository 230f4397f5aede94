"""How much a run measures, from the command line. No I/O."""

from __future__ import annotations

from typing import Final

import msgspec

PARTS: Final = (
    "lone", "calls", "streams", "memory", "journal", "admission", "kafka", "idle", "profile",
)  # fmt: skip
"""What can be measured by itself, in the order in which it is measured."""
USUAL: Final = tuple(part for part in PARTS if part != "profile")


class Options(msgspec.Struct, frozen=True):
    """Times and numbers of a run."""

    parts: tuple[str, ...] = USUAL
    accounts: int = 200
    seconds: float = 2.0
    """Of each measurement; every one is repeated and the best repetition is shown."""
    repetitions: int = 3
    streams: int = 400
    slow_streams: int = 500
    journal_requests: int = 30_000
    history_events: int = 1_000_000
    """Of the account that was there for long."""
    timed_holds: int = 1_000
    """Of each account, in each of the interleaved runs."""
    idle_s: float = 8.0
    parallel: tuple[int, ...] = (32, 128)


QUICK: Final = Options(
    seconds=0.5,
    repetitions=1,
    accounts=8,
    streams=100,
    slow_streams=100,
    journal_requests=3_000,
    history_events=20_000,
    timed_holds=100,
    idle_s=2.0,
    parallel=(32,),
    parts=tuple(part for part in USUAL if part != "kafka"),
)
"""A smoke test: shows that all of it runs; its figures mean little."""
