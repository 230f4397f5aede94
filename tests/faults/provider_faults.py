"""Faults of the two ends: providers that are slow, break off or lie, and clients that hang up or
read slowly.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from random import Random
from urllib.parse import urlsplit

import httpx
import msgspec
import psutil

from tests.faults.books import Request
from tests.faults.gateway import RESET
from tests.faults.ground import Ground
from tests.faults.load import Call, Ending, Load
from tests.faults.nemesis import Nemesis
from tests.faults.site import Account, streamed_call
from tests.faults.verdict import Verdict
from tests.upstream import Script, Seen

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
HUGE = {"prompt_tokens": 1_000_000_000, "completion_tokens": 3, "total_tokens": 1_000_000_003}
WRONG = {"prompt_tokens": -5, "completion_tokens": "three", "total_tokens": None}
CANCELLED_S = 1.0
READ_ON_S = 2.0
"""docs/billing.md: how soon the provider's call is given up before and after the first token."""
SLACK_S = 1.5


class Mode(msgspec.Struct, frozen=True):
    """How a provider breaks, and how a call must end: streamed, and as a whole."""

    name: str
    script: Script
    streamed: str
    whole: str


MODES = (
    Mode("cut before the head", Script(cut_before_head=True), "released", "released"),
    Mode("cut after the head", Script(cut_after=0), "released", "released"),
    Mode("cut in mid-stream", Script(cut_after=2), "counted", "released"),
    Mode("half a frame", Script(half_frame_after=1), "counted", "released"),
    Mode("ends early", Script(end_early_after=1, usage=None), "counted", "counted"),
    Mode("error in a 200", Script(error_frame_after=1), "counted", "released"),
    Mode("429", Script(status=429, retry_after="1"), "released", "released"),
    Mode("wrong usage", Script(usage=WRONG), "counted", "counted"),
    Mode("huge usage", Script(usage=HUGE), "reported", "reported"),
)


def kind_of(request: Request) -> str:
    return "released" if request.released else str(request.settled[0].basis.value)


class ProviderModes(Nemesis):
    fault, what = "F20", "provider cuts, breaks and lies in nine ways"
    lasts_s = (0.0, 0.0)
    rounds_short = 1

    def __init__(self) -> None:
        self._made: list[tuple[Mode, Call, Seen]] = []

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._account = accounts[0]

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        # A huge usage takes all that an account has: it must not be one of the load's.
        victims = await ground.open_accounts(20_000_000, 20_000_000)
        modes = list(MODES)
        chance.shuffle(modes)
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            for mode in modes:
                ground.upstream.by_model["odd"] = mode.script
                for streamed in (True, False):
                    account = self._account
                    if mode.name == "huge usage":
                        account = victims[streamed]
                    call = Call(account, "odd", streamed=streamed)
                    seen = len(ground.upstream.seen)
                    await call.make(client, chance.choice(ground.urls))
                    asked = [s for s in ground.upstream.seen[seen:] if s.json["model"] == "odd"]
                    assert asked, f"{mode.name}: nothing reached the provider: {call}"
                    self._made.append((mode, call, asked[-1]))

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        for mode, call, seen in self._made:
            request = verdict.books.requests[seen.request_id]
            due = mode.streamed if call.streamed else mode.whole
            kind = "streamed" if call.streamed else "whole"
            assert kind_of(request) == due, f"{mode.name}, {kind}: {kind_of(request)}, not {due}"
            if due == "released":
                assert call.ending is not Ending.ANSWERED, call
        short_upt = sum(one.settled_short_upt for one in verdict.books.requests.values())
        assert short_upt > 0, "what cannot be charged of a huge usage is a shortfall"
        return f"{len(MODES)} modes, streamed and whole, each ended by its rule"


class SlowProvider(Nemesis):
    fault, what = "F19", "provider silent before the head, and between tokens"
    lasts_s = (0.0, 0.0)
    rounds_short = 1
    silent = Script(usage=USAGE, first_byte_delay_s=30)
    sticky = Script(usage=USAGE, chunk_delay_s=5)
    calls = 6
    deadline_s = 3.0
    """As the ground has it: time for the first byte, and between bytes."""

    def __init__(self) -> None:
        self._number = self._first = 0
        self._longest_s = 0.0

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._accounts = accounts[:2]

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        if not self._number:
            self._first = chance.randint(0, 1)
        # A whole answer has no tokens to wait between.
        kinds = [(self.silent, (True, False)), (self.sticky, (True,))]
        self._number += 1
        # Both in turn, whichever comes first.
        script, streams = kinds[(self._number + self._first) % 2]
        ground.upstream.by_model["odd"] = script
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            calls = [
                Call(chance.choice(self._accounts), "odd", streamed=chance.choice(streams))
                for _ in range(self.calls)
            ]
            await asyncio.gather(*(call.make(client, chance.choice(ground.urls)) for call in calls))
        for call in calls:
            assert call.ending in (Ending.REFUSED, Ending.ERROR_FRAME), call
            self._longest_s = max(self._longest_s, call.ended_s - call.began_s)
        load.calls.extend(calls)

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        assert self._longest_s < 2 * self.deadline_s + SLACK_S
        return f"given up after at most {self._longest_s:.1f} s, deadline {self.deadline_s:.0f} s"


class Hanging:
    """A client on a bare socket, which can be told to hang up rudely or to read nothing."""

    def __init__(self, url: str, account: Account, model: str, *, buffer_bytes: int = 0) -> None:
        place = urlsplit(url)
        self._socket = socket.socket()
        if buffer_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._socket.setblocking(False)
        self._place = (place.hostname, place.port)
        body = json.dumps(streamed_call(model)).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {place.netloc}\r\n"
            f"authorization: Bearer {account.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def call(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._place)
        await loop.sock_sendall(self._socket, self._request)

    async def read_until(self, words: bytes) -> None:
        loop, got = asyncio.get_running_loop(), b""
        async with asyncio.timeout(20):
            while words not in got:
                piece = await loop.sock_recv(self._socket, 65_536)
                assert piece, f"ended without {words!r}"
                got = got[-1_024:] + piece

    async def sip(self, pieces: int) -> None:
        """Reads a byte at a time, slowly."""
        for _ in range(pieces):
            await asyncio.get_running_loop().sock_recv(self._socket, 1)
            await asyncio.sleep(0.2)

    def widen(self) -> None:
        """Takes all there is from now on."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def hang_up(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


class HangsUp(Nemesis):
    fault, what = "F21", "client hangs up before the first token, after it, after the last"
    lasts_s = (0.0, 0.0)
    rounds_short = 1
    script = Script(usage=USAGE, gated=True)

    def __init__(self) -> None:
        self._cancel_s = {"before": 0.0, "after": 0.0}
        self._due: list[tuple[str, str]] = []

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._account = accounts[0]

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        ground.upstream.by_model["odd"] = self.script
        for tokens in (0, 1, len(self.script.texts)):
            client = Hanging(chance.choice(ground.urls), self._account, "odd")
            seen = await self._opened(ground, client)
            if tokens:
                seen.allow(tokens if tokens == 1 else tokens - 1)
                await client.read_until(self.script.texts[0].encode())
            left_at_s = time.time()
            client.hang_up()
            if tokens == len(self.script.texts):
                seen.allow(1)
                await seen.until("finished", timeout_s=READ_ON_S)
                self._due.append((seen.request_id, "reported"))
                continue
            await seen.until("client_left", timeout_s=10)
            assert seen.client_left_at_s is not None
            when = "after" if tokens else "before"
            took_s = seen.client_left_at_s - left_at_s
            self._cancel_s[when] = max(self._cancel_s[when], took_s)
            self._due.append((seen.request_id, "counted" if tokens else "released"))

    async def _opened(self, ground: Ground, client: Hanging) -> Seen:
        before = len(ground.upstream.seen)
        await client.call()
        async with asyncio.timeout(10):
            while True:
                for seen in ground.upstream.seen[before:]:
                    if seen.json["model"] == "odd":
                        return seen
                await asyncio.sleep(0.005)

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        for request_id, due in self._due:
            assert kind_of(verdict.books.requests[request_id]) == due
        assert self._cancel_s["before"] < CANCELLED_S + SLACK_S
        assert self._cancel_s["after"] < READ_ON_S + SLACK_S
        said = {when: f"{1000 * took_s:.0f} ms" for when, took_s in self._cancel_s.items()}
        return (
            f"provider's call given up {said['before']} after the hang-up before the first token, "
            f"{said['after']} after it"
        )


class ReadsSlowly(Nemesis):
    fault, what = "F22", "client reads a byte now and then of a long answer"
    lasts_s = (0.0, 0.0)
    rounds_short = 1
    texts = ("0123456789abcdef" * 4_096,) * 800
    """52 MB: more than all the buffers of the system between provider and client."""
    rss_bytes_max = 4 * 1024 * 1024

    def __init__(self) -> None:
        self._grown_bytes = 0
        self._sent = 0

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._account = accounts[0]

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        ground.upstream.by_model["odd"] = Script(usage=USAGE, texts=self.texts)
        process = psutil.Process(ground.api_a.pid)
        before = process.memory_info().rss
        client = Hanging(ground.api_a.url, self._account, "odd", buffer_bytes=4_096)
        seen_before = len(ground.upstream.seen)
        await client.call()
        await client.sip(10)
        seen = next(s for s in ground.upstream.seen[seen_before:] if s.json["model"] == "odd")
        self._sent = max(self._sent, seen.chunks_sent)
        # How much the kernel takes in between is its own affair, up to tens of megabytes.
        assert seen.chunks_sent < len(self.texts), "nobody holds the provider back"
        self._grown_bytes = max(self._grown_bytes, process.memory_info().rss - before)
        client.widen()
        await client.read_until(b"[DONE]")
        client.close()

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        assert self._grown_bytes < self.rss_bytes_max + 4 * len(self.texts[0]) * self._sent
        grown, sent = self._grown_bytes / 1e6, self._sent * len(self.texts[0]) / 1e6
        whole = sum(map(len, self.texts)) / 1e6
        return (
            f"provider held back after {sent:.1f} of {whole:.1f} MB (system buffers and what "
            f"arrived); the process grew by {grown:.1f} MB"
        )
