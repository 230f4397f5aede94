"""One run of the load generator: who calls next, and the tally of what came back."""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections.abc import Sequence
from typing import Final

from bench.caller import Caller
from bench.plan import Plan, Report
from bench.shapes import RequestSent, request_body
from bench.spread import Samples

ERRORS_KEPT: Final = 5
ERRORS_MAX: Final = 1_000
"""After so many a run ends: what is measured is then something else."""
TICK_S: Final = 0.001


def requests_of(plan: Plan) -> list[bytes]:
    """One whole HTTP request per key, or one without."""
    body = request_body(RequestSent(plan.model, plan.events > 0))
    return [_request(key, body) for key in plan.keys or ("",)]


def _request(key: str, body: bytes) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nuser-agent: bench\r\n"
    )
    if key:
        head += f"authorization: Bearer {key}\r\n"
    return head.encode() + b"\r\n" + body


class Session:
    """The book all callers of one run write into."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        self.events: Final = plan.events
        self._plan, self._loop = plan, loop
        self._requests: Final = itertools.cycle(requests_of(plan))
        self._callers: list[Caller] = []
        self._idle: list[Caller] = []
        self._ended: Final = asyncio.Event()
        self._drained: Final = asyncio.Event()
        self._stopping = self._measuring = False
        self._latency, self._first, self._transit = Samples(), Samples(), Samples()
        self._issued = self._calls = self._chunks = self._errors = self._due = 0
        self._faults: list[str] = []
        self._started_s = self._cpu_s = 0.0

    def start(self, callers: Sequence[Caller]) -> None:
        """Begins to call. Streams start spread over the warm-up, lest they all end together."""
        self._callers = list(callers)
        if self._plan.rate_per_s:
            self._idle = list(callers)
            self._started_s = self._loop.time()
            self._loop.call_soon(self._offer)
            return
        # The last ones have a fifth of the warm-up to get going.
        gap_s = self._plan.warm_s * 0.8 / len(callers) if self.events else 0.0
        for number, caller in enumerate(callers):
            self._loop.call_later(number * gap_s, self._next, caller)

    def measure(self) -> None:
        """Forgets the warm-up."""
        for samples in (self._latency, self._first, self._transit):
            samples.clear()
        self._calls = self._chunks = 0
        self._measuring = True
        self._cpu_s = _own_cpu_s()
        self._due, self._started_s = 0, self._loop.time()

    async def over(self) -> Report:
        """Waits until the time, the calls or the patience with errors are used up."""
        try:
            async with asyncio.timeout(self._plan.seconds):
                await self._ended.wait()
        except TimeoutError:
            pass
        report = self._report()
        self._measuring, self._stopping = False, True
        self._look_whether_drained()
        return report

    async def drain(self) -> None:
        """Lets calls in flight end, then closes all connections."""
        try:
            async with asyncio.timeout(self._plan.drain_s):
                await self._drained.wait()
        except TimeoutError:
            pass
        for caller in self._callers:
            caller.close()

    def chunk(self, sent_ns: int, now_ns: int) -> None:
        if self._measuring:
            self._chunks += 1
            self._transit.add(now_ns - sent_ns)

    def answered(self, caller: Caller, started_ns: int, first_ns: int, fault: str | None) -> None:
        if fault is not None:
            self._wrong(fault)
        elif self._measuring:
            self._calls += 1
            self._latency.add(time.monotonic_ns() - started_ns)
            self._first.add(first_ns - started_ns)
        if self._stopping:
            self._look_whether_drained()
        elif self._plan.rate_per_s:
            self._idle.append(caller)
        else:
            self._next(caller)

    def lost(self, caller: Caller, *, in_flight: bool) -> None:
        if self._stopping:
            self._look_whether_drained()
            return
        self._callers.remove(caller)
        if caller in self._idle:
            self._idle.remove(caller)
        self._wrong("connection lost in a call" if in_flight else "connection closed between calls")
        if not self._callers:
            self._ended.set()

    def _next(self, caller: Caller) -> None:
        if self._stopping or caller not in self._callers:
            return
        if self._issued >= self._plan.calls_max:
            self._ended.set()
            return
        self._issued += 1
        caller.call(next(self._requests))

    def _offer(self) -> None:
        """Open loop: sends what is due by now, as far as connections are free."""
        if self._stopping:
            return
        due = int((self._loop.time() - self._started_s) * self._plan.rate_per_s)
        while self._due < due and self._idle:
            self._due += 1
            self._next(self._idle.pop())
        self._loop.call_later(TICK_S, self._offer)

    def _look_whether_drained(self) -> None:
        if not any(caller.in_flight for caller in self._callers):
            self._drained.set()

    def _wrong(self, fault: str) -> None:
        self._errors += 1
        if len(self._faults) < ERRORS_KEPT and fault not in self._faults:
            self._faults.append(fault)
        if self._errors >= ERRORS_MAX:
            self._ended.set()
            self._stopping = True

    def _report(self) -> Report:
        return Report(
            seconds=max(self._loop.time() - self._started_s, TICK_S),
            calls=self._calls,
            errors=self._errors,
            first_errors=tuple(self._faults),
            chunks=self._chunks,
            cpu_s=_own_cpu_s() - self._cpu_s,
            latency=self._latency.spread(),
            first_byte=self._first.spread(),
            transit=self._transit.spread(),
            open_now=sum(caller.in_flight for caller in self._callers),
        )


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
