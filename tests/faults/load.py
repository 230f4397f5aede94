"""Callers that keep a site busy: a plain HTTP client that believes only what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from random import Random
from types import TracebackType

import httpx

from schemas.errors import SettlementPending
from tests.faults.site import Account, streamed_call, whole_call

CALL_TIMEOUT_S = 40.0
REFUSED_PAUSE_S = 0.05


class Ending(StrEnum):
    OPEN = "open"
    ANSWERED = "answered"
    """A whole body, or a stream with its `[DONE]`."""
    REFUSED = "refused"
    """A status of 4xx or 5xx."""
    ERROR_FRAME = "error frame"
    BROKEN = "broken"
    """The connection went away, or was never made."""


class Returned(StrEnum):
    OK = "ok"
    FAIL = "fail"
    """It did not happen: nothing may be charged."""
    UNKNOWN = "unknown"
    """The client cannot tell: charged by the settlement rule, or not at all."""


NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")


class Call:
    """One call as its client saw it."""

    def __init__(self, account: Account, model: str, *, streamed: bool, command: str = "") -> None:
        """`command`: its Idempotency-Key; none where empty."""
        self.account = account
        self.command = command
        self.model = model
        self.streamed = streamed
        self.ending = Ending.OPEN
        self.status = 0
        self.request_id = ""
        self.points = ""
        """What the client was told it cost."""
        self.code = ""
        """The error's code, where one came."""
        self.trouble = ""
        self.began_s = 0.0
        self.ended_s = 0.0

    @property
    def returned(self) -> Returned:
        """What its client knows of it."""
        if self.ending is Ending.ANSWERED:
            return Returned.OK
        if self.ending is Ending.REFUSED and self.code != SettlementPending.code:
            return Returned.FAIL
        if self.trouble in NEVER_SENT:
            return Returned.FAIL
        return Returned.UNKNOWN

    def __repr__(self) -> str:
        kind = "streamed" if self.streamed else "whole"
        what = f"{self.ending.value} {self.status} {self.code} {self.trouble}"
        return f"Call({self.model} {kind}: {what} {self.request_id})"

    async def make(self, client: httpx.AsyncClient, url: str) -> None:
        body = streamed_call(self.model) if self.streamed else whole_call(self.model)
        headers = {"authorization": f"Bearer {self.account.key}"}
        if self.command:
            headers["idempotency-key"] = self.command
        address = f"{url}/v1/chat/completions"
        loop = asyncio.get_running_loop()
        self.began_s = loop.time()
        try:
            async with client.stream("POST", address, json=body, headers=headers) as answer:
                self.status = answer.status_code
                self.request_id = answer.headers.get("x-request-id", "")
                await self._read(answer)
        except httpx.HTTPError as error:
            self.ending = Ending.BROKEN
            self.trouble = type(error).__name__
        finally:
            self.ended_s = loop.time()

    async def _read(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            body = json.loads(await answer.aread())
            self.code = str(body["error"]["code"])
            self.ending = Ending.REFUSED
        elif self.streamed:
            await self._read_stream(answer)
        else:
            json.loads(await answer.aread())
            self.points = answer.headers["x-suanpan-points"]
            self.ending = Ending.ANSWERED

    async def _read_stream(self, answer: httpx.Response) -> None:
        ending, self.trouble = Ending.BROKEN, "ended without [DONE]"
        async for line in answer.aiter_lines():
            if line.startswith(": suanpan-points "):
                self.points = line.rpartition(" ")[2]
            elif line == "data: [DONE]":
                ending, self.trouble = Ending.ANSWERED, ""
            elif line.startswith('data: {"error"'):
                ending, self.trouble = Ending.ERROR_FRAME, ""
                self.code = str(json.loads(line[6:])["error"]["code"])
        self.ending = ending


class Load:
    """`width` callers, each making one call after another until told to stop."""

    def __init__(
        self,
        urls: str | Sequence[str],
        accounts: Sequence[Account],
        models: Sequence[str],
        chance: Random,
        width: int,
        pause_s: float = 0.0,
    ) -> None:
        self.calls: list[Call] = []
        self.in_flight: set[Call] = set()
        self._changed = asyncio.Condition()
        self.up = asyncio.Event()
        self.up.set()
        self.on_start: Callable[[], None] = _nothing
        self.tell: Callable[[str, Call], None] = _tell_nobody
        """Called when a call is an `invoke`, and when it has its `return`."""
        self._urls = (urls,) if isinstance(urls, str) else tuple(urls)
        self._accounts = accounts
        self._models = models
        self._chance = chance
        self._width = width
        self._pause_s = pause_s
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._client = httpx.AsyncClient(
            trust_env=False,
            timeout=CALL_TIMEOUT_S,
            limits=httpx.Limits(max_connections=width * 2),
        )

    async def __aenter__(self) -> Load:
        # Each caller keeps to one process, as a balancer's client would: one that hangs stops its
        # own callers, not all of them.
        self._tasks = [
            asyncio.create_task(self._caller(self._urls[number % len(self._urls)]))
            for number in range(self._width)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Lets the calls under way end."""
        self._stopping = True
        self.up.set()
        if error is not None:
            await self.hang_up()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        for one in ended:
            if error is None and isinstance(one, Exception):
                raise one

    async def hang_up(self) -> None:
        """Drops all calls where they are, and makes no more."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def ended(self, ending: Ending) -> list[Call]:
        return [call for call in self.calls if call.ending is ending]

    async def until_served(self, since_s: float, timeout_s: float = 60) -> None:
        """Waits for an answer to a call that began after `since_s` (of the event loop's clock)."""

        def served() -> bool:
            return any(
                call.ending is Ending.ANSWERED and call.began_s >= since_s
                for call in reversed(self.calls[-4 * self._width :])
            )

        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(served)

    async def until_answered(self, count: int, timeout_s: float = 30) -> None:
        """Waits for so many more answers."""
        wanted = len(self.ended(Ending.ANSWERED)) + count
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(self.ended(Ending.ANSWERED)) >= wanted)

    async def until_refused(self, count: int, timeout_s: float = 30) -> None:
        """Waits until so many calls in all were refused."""

        def refused() -> bool:
            return sum(call.returned is Returned.FAIL for call in self.calls) >= count

        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(refused)

    async def until_idle(self, timeout_s: float = 60) -> None:
        """Waits until no call is under way; clear `up` first."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: not self.in_flight)

    async def _caller(self, url: str) -> None:
        while not self._stopping:
            await self.up.wait()
            if self._stopping:
                return
            call = Call(
                self._chance.choice(self._accounts),
                self._chance.choice(self._models),
                streamed=self._chance.random() < 0.6,
            )
            self.calls.append(call)
            self.in_flight.add(call)
            self.on_start()
            self.tell("invoke", call)
            try:
                await call.make(self._client, url)
            finally:
                self.in_flight.discard(call)
                self.tell("return", call)
            async with self._changed:
                self._changed.notify_all()
            if call.ending in (Ending.BROKEN, Ending.REFUSED) or self._pause_s:
                # Refused again and again, a caller must not keep everybody else from running.
                await asyncio.sleep(max(self._pause_s, REFUSED_PAUSE_S))


def _nothing() -> None:
    """For whoever does not want to know."""


def _tell_nobody(what: str, call: Call) -> None:
    del what, call
