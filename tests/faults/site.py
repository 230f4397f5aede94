"""A site under test: accounts with points and keys, priced models, one channel to a fake provider.

The provider lives in the test's own process, so that it outlives whatever is killed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec

from backend.cli.site import open_site
from backend.grants import GrantAsked
from backend.identity.service import KeyAsked
from backend.kit.settings import load_settings
from schemas.catalog import ChannelSettings
from schemas.ids import account_stream
from schemas.money import UPT_PER_POINT, MicroPoints
from schemas.prices import PerCall, PerToken, Price
from tests.faults.roles import NO_VALKEY
from tests.upstream import FakeUpstream, Script

PER_TOKEN = PerToken(input_npt=100_000, output_npt=200_000)
"""0.1 and 0.2 points per 1,000 tokens: 100 and 200 micro-points a token."""
PRICES: dict[str, Price] = {
    "quick": PER_TOKEN,
    "late-head": PER_TOKEN,
    "long": PerToken(input_npt=30_001, output_npt=70_007),
    "gated": PER_TOKEN,
    "flat": PerCall(call_npt=1_000_003),
    "victim": PER_TOKEN,
    "odd": PER_TOKEN,
}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 3}
SCRIPTS = {
    "quick": Script(usage=_USAGE, usage_varies=True),
    "late-head": Script(usage=_USAGE, usage_varies=True, first_byte_delay_s=0.15),
    "long": Script(usage=_USAGE, usage_varies=True, texts=("word ",) * 20, chunk_delay_s=0.015),
    "gated": Script(usage=_USAGE, usage_varies=True, gated=True),
    "flat": Script(usage=_USAGE, usage_varies=True, first_byte_delay_s=0.02),
    # Called by faults alone, never by the load: what comes to it can be told apart.
    "victim": Script(usage=_USAGE, usage_varies=True, first_byte_delay_s=0.1),
    "odd": Script(usage=_USAGE, usage_varies=True),
}
LOAD_MODELS = ("quick", "late-head", "long", "flat")
KNOWN_TIMEOUT_S = 10.0
PLENTY = 100_000
SCANT = 4
"""Points: enough for a few calls at once and a few hundred in all."""


class Account(msgspec.Struct, frozen=True):
    stream: str
    key: str
    granted_upt: int


def upstream_with_models() -> FakeUpstream:
    upstream = FakeUpstream()
    upstream.by_model.update(SCRIPTS)
    return upstream


async def open_accounts(
    environment: dict[str, str], upstream_url: str, points: tuple[int, ...] = (PLENTY,)
) -> tuple[Account, ...]:
    """Sets prices, adds the channel and opens one account per number of points."""
    await stock_catalogue(environment, upstream_url)
    return await open_people(environment, tuple(amount * UPT_PER_POINT for amount in points))


async def stock_catalogue(environment: dict[str, str], upstream_url: str) -> None:
    """Prices for all models, and one channel."""
    async with open_site(load_settings(environment)) as site:
        for model, price in PRICES.items():
            await site.catalog.set_price(model, price)
        channel = ChannelSettings("fake", "openai", upstream_url, tuple(PRICES))
        await site.opening.add_channel(channel, "sk-upstream")


async def open_people(
    environment: dict[str, str], amounts_upt: tuple[int, ...]
) -> tuple[Account, ...]:
    """One person with an account and a key per amount."""
    made: list[Account] = []
    async with open_site(load_settings(environment)) as site:
        for amount_upt in amounts_upt:
            opened = await site.opening.open_person(f"person {secrets.token_hex(6)}", None)
            asked = GrantAsked(opened.person, MicroPoints(amount_upt), "for the test")
            await site.grants.grant(asked, actor="test")
            key = await site.identity.create_key(opened.person, KeyAsked())
            made.append(Account(account_stream(opened.person), key.text, amount_upt))
    return tuple(made)


async def until_served(url: str, accounts: Sequence[Account]) -> None:
    """Waits until the process has heard of the models and of everybody's key."""
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(KNOWN_TIMEOUT_S):
        for account in accounts:
            headers = {"authorization": f"Bearer {account.key}"}
            while True:
                answer = await client.get(f"{url}/v1/models", headers=headers, timeout=5)
                if answer.status_code == 200 and len(answer.json()["data"]) >= len(PRICES):
                    break
                await asyncio.sleep(0.03)


def outside_database(app_url: str, owner_url: str) -> dict[str, str]:
    """The environment of a role whose Postgres is not its own."""
    return {"DATABASE_URL": app_url, "DATABASE_OWNER_URL": owner_url, "REDIS_URL": NO_VALKEY}


def whole_call(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello there"}]}


def streamed_call(model: str) -> dict[str, Any]:
    return whole_call(model) | {"stream": True}
