"""Calls that a test holds at the provider's gate, so that it knows where each of them is."""

from __future__ import annotations

import asyncio

import httpx

from tests.faults.load import Call, Ending
from tests.faults.roles import Role
from tests.faults.site import Account
from tests.upstream import FakeUpstream, Script, Seen

GATED = Script(
    gated=True, usage={"prompt_tokens": 900, "completion_tokens": 300, "total_tokens": 1200}
)
DUE = "0.15"
"""900 tokens at 100 and 300 at 200 micro-points."""
DUE_UPT = 150_000
CHUNKS = len(GATED.texts)


class Calling:
    """Calls to one process, each waiting for the provider to be let go."""

    def __init__(self, role: Role, account: Account, upstream: FakeUpstream) -> None:
        self._role = role
        self._account = account
        self._upstream = upstream
        self._client = httpx.AsyncClient(trust_env=False, timeout=60)
        self.calls: list[Call] = []
        self.seen: list[Seen] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *, streamed: bool) -> Seen:
        """Makes a call; returns when the provider has it."""
        call = Call(self._account, "gated", streamed=streamed)
        arrived = len(self._upstream.seen)
        self.calls.append(call)
        self._tasks.append(asyncio.create_task(call.make(self._client, self._role.url)))
        seen = await self._upstream.arrived(arrived + 1, timeout_s=20)
        self.seen.append(seen)
        return seen

    async def let_go(self) -> None:
        """The provider answers all of them to the end."""
        for seen in self.seen:
            seen.allow(CHUNKS)
        for seen in self.seen:
            await seen.until("finished", timeout_s=20)

    async def ended(self) -> None:
        async with asyncio.timeout(40):
            await asyncio.gather(*self._tasks)
        await self._client.aclose()


async def answered_once(role: Role, account: Account) -> None:
    """The process has its connections from now on."""
    call = Call(account, "quick", streamed=False)
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        await call.make(client, role.url)
    assert call.ending is Ending.ANSWERED, call
