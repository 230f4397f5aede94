"""Storms: many attempts at one thing at the same instant, of which exactly so many may succeed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import httpx
import msgspec

from schemas.prices import cost_of
from schemas.usage import Usage
from tests.faults.ground import Ground
from tests.faults.load import Call, Ending
from tests.faults.site import PRICES, Account

Attempt = Callable[[], Awaitable[bool]]
"""One attempt; whether it succeeded. Any other outcome than yes or a proper no must raise."""


class Storm(msgspec.Struct, frozen=True):
    """What is attempted, and how many of the attempts may succeed."""

    attempts: Sequence[Attempt]
    exactly: int
    accounts: tuple[Account, ...]
    calls: Sequence[Call] = ()


Gather = Callable[[Ground, Random], Awaitable[Storm]]


async def strike(storm: Storm) -> int:
    """All attempts at once; how many succeeded."""
    gate = asyncio.Event()

    async def one(attempt: Attempt) -> bool:
        await gate.wait()
        return await attempt()

    tasks = [asyncio.create_task(one(attempt)) for attempt in storm.attempts]
    await asyncio.sleep(0)
    gate.set()
    return sum(await asyncio.gather(*tasks))


async def fifty_spenders(ground: Ground, chance: Random) -> Storm:
    """Fifty calls on one account that has points for exactly k of them, by two processes."""
    affordable = chance.randint(5, 40)
    call_upt = cost_of(PRICES["flat"], Usage())
    (account,) = await ground.open_accounts(affordable * call_upt)
    calls = [Call(account, "flat", streamed=chance.random() < 0.5) for _ in range(50)]
    return Storm([_spender(ground, call) for call in calls], affordable, (account,), calls)


def _spender(ground: Ground, call: Call) -> Attempt:
    async def spend() -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            await call.make(client, ground.urls[id(call) // 64 % len(ground.urls)])
        assert call.ending is Ending.ANSWERED or call.status == 402, call
        return call.ending is Ending.ANSWERED

    return spend


STORMS: dict[str, tuple[str, Gather]] = {
    "spenders": ("50 spenders on one account with points for k", fifty_spenders),
}
"""Name → (what it is, how it gathers). Another storm is another line here."""


def note_of(storm: Storm, done: int) -> str:
    return f"exactly {done} of {len(storm.attempts)} succeeded"
