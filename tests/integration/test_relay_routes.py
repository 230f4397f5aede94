"""What a key may see beside chat: its models, its bill in dollars, the site's health."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from backend.identity.service import KeyAsked
from schemas.catalog import ChannelSettings
from schemas.prices import PerCall
from tests.conftest import Database
from tests.integration.identity_site import until
from tests.site import Customer, RunningSite, chat, running_site
from tests.upstream import FakeUpstream

RATE = "8"
"""CNY per dollar: 10 points are 1 CNY, so 80 points are 1 dollar."""


async def test_a_key_sees_its_models_and_its_bill(database: Database, tmp_path: Path) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, projecting=True, billing_cny_per_usd=RATE) as site,
    ):
        await site.serves(upstream.url, "b", "a/c", price=PerCall(4_000_000_000))
        anna, other = await site.customer("40"), await site.customer("40", models=("b",))
        await _models(site, anna, other)
        await _bill(site, anna, charged=0)
        for _ in range(3):
            assert (await site.ask(anna.key, chat("b"))).status == 200
        await site.ended(anna, 3)
        await _bill(site, anna, charged=12)
        await _bill(site, other, charged=0)
        await _dates(site, anna)


async def _models(site: RunningSite, anna: Customer, other: Customer) -> None:
    listed = (await site.get("/v1/models", anna.key)).json
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["a/c", "b"]
    assert {entry["object"] for entry in listed["data"]} == {"model"}
    listed = (await site.get("/v1/models", other.key)).json
    assert [entry["id"] for entry in listed["data"]] == ["b"]
    assert (await site.get("/v1/models/a/c", anna.key)).json["id"] == "a/c"
    for path, key in (("/v1/models/a/c", other.key), ("/v1/models/none", anna.key)):
        reply = await site.get(path, key)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def _bill(site: RunningSite, customer: Customer, charged: int) -> None:
    """80 points are a dollar: 40 granted are 0.5 dollars, 12 charged are 15 cents."""
    for prefix in ("", "/v1"):
        usage = await site.get(f"{prefix}/dashboard/billing/usage", customer.key)
        assert usage.json == {"object": "list", "total_usage": charged / 0.8}
        reply = await site.get(f"{prefix}/dashboard/billing/subscription", customer.key)
        assert reply.json["object"] == "billing_subscription"
        assert reply.json["hard_limit_usd"] == reply.json["system_hard_limit_usd"] == 0.5
        assert (await site.get(f"{prefix}/dashboard/billing/usage")).status == 401
        assert (await site.get(f"{prefix}/dashboard/billing/subscription")).status == 401


async def _dates(site: RunningSite, anna: Customer) -> None:
    """With dates the bill is read from the projection, which follows within moments."""
    today = datetime.now(UTC).date()

    async def total(**dates: Any) -> float:
        query = "&".join(f"{name}_date={value}" for name, value in dates.items())
        reply = await site.get(f"/v1/dashboard/billing/usage?{query}", anna.key)
        assert reply.status == 200, reply.body
        return reply.json["total_usage"]

    async with asyncio.timeout(10):
        while True:
            if await total(start=today - timedelta(days=1)) == 15:
                break
            await asyncio.sleep(0.02)
    month = timedelta(days=30)
    assert await total(start=today - month, end=today + timedelta(days=1)) == 15
    assert await total(end=today) == 15
    assert await total(start=today - month, end=today - timedelta(days=2)) == 0
    assert await total(start=f"{today}T00:00:00Z") == 15
    reply = await site.get("/dashboard/billing/usage?start_date=yesterday", anna.key)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")


async def test_health_and_metrics_tell_of_calls(database: Database, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, running_site(database, tmp_path) as site:
        await site.serves(upstream.url)
        anna = await site.customer()
        assert (await site.ask(anna.key, chat())).status == 200
        assert (await site.ask("sk-nobody", chat())).status == 401
        await until(lambda: len(site.relay.front.calls) == 0)
        health = await site.get("/health")
        assert (health.status, health.json["status"]) == (200, "ready")
        metrics = (await site.get("/metrics")).body.decode()
        assert 'suanpan_relay_calls_total{status="200"} 1.0' in metrics
        assert 'suanpan_relay_calls_total{status="401"} 1.0' in metrics
        assert anna.key not in metrics


async def test_what_was_made_a_moment_ago_is_known_at_once(
    database: Database, tmp_path: Path
) -> None:
    """A script that makes a key, a channel and a price and calls right away is not refused."""
    async with FakeUpstream() as upstream, running_site(database, tmp_path) as site:
        anna = await site.customer()
        for number in range(3):
            new = await site.base.identity.create_key(anna.person, KeyAsked("script"))
            model = f"fresh-{number}"
            settings = ChannelSettings(model, "openai", upstream.url, (model,))
            await site.base.opening.add_channel(settings, "sk-up")
            await site.base.catalog.set_price(model, PerCall(1_000_000))
            assert (await site.ask(new.text, chat(model))).status == 200


async def test_many_strangers_share_one_look_at_the_log(database: Database, tmp_path: Path) -> None:
    async with running_site(database, tmp_path) as site:
        strangers = [site.ask(f"sk-{number:040}", chat()) for number in range(60)]
        replies = await asyncio.gather(*strangers)
        assert {reply.status for reply in replies} == {401}
