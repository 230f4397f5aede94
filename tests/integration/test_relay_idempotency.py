"""One Idempotency-Key is one call: a repeat is told what became of it, a failure frees the key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from schemas.ledger import PointsHeld
from schemas.prices import PerCall
from tests.conftest import Server
from tests.site import Reply, RunningSite, chat, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(server, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


def conflict(reply: Reply) -> str:
    assert (reply.status, reply.error["code"]) == (409, "idempotency_conflict"), reply.body
    assert reply.error["type"] == "invalid_request_error"
    return reply.error["message"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_repeat_is_told_the_request_id_in_flight_and_the_charge_after(
    site: RunningSite, upstream: FakeUpstream, streamed: bool
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    upstream.play(Script(gated=True))
    body = chat(model, stream=streamed)
    first = asyncio.create_task(site.ask(anna.key, body, idempotency_key="k-1"))
    seen = await upstream.arrived()
    sentence = conflict(await site.ask(anna.key, body, idempotency_key="k-1"))
    assert seen.request_id in sentence
    assert "in flight" in sentence
    seen.allow(10)
    assert (await first).status == 200
    sentence = conflict(await site.ask(anna.key, body, idempotency_key="k-1"))
    assert seen.request_id in sentence
    assert "0.0015 points" in sentence
    assert len(upstream.seen) == 1
    assert (await site.account(anna)).charged_upt == 1500


async def test_a_key_with_another_body_is_refused_and_says_nothing_of_the_first(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    assert (await site.ask(anna.key, chat(model), idempotency_key="k")).status == 200
    sentence = conflict(await site.ask(anna.key, chat(model, seed=1), idempotency_key="k"))
    assert "another body" in sentence
    assert upstream.seen[0].request_id not in sentence


async def test_keys_are_apart_per_account_and_none_is_no_key(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna, boris = await site.customer(), await site.customer()
    for customer in (anna, boris):
        assert (await site.ask(customer.key, chat(model), idempotency_key="k")).status == 200
    for _ in range(2):
        assert (await site.ask(anna.key, chat(model))).status == 200
    for bad in ("", "x" * 256):
        assert (await site.ask(anna.key, chat(model), idempotency_key=bad)).status == 400


async def test_of_many_at_once_under_one_key_one_is_answered(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    replies = await asyncio.gather(
        *(site.ask(anna.key, chat(model), idempotency_key="k") for _ in range(20))
    )
    assert Counter(reply.status for reply in replies) == {200: 1, 409: 19}
    for reply in replies:
        if reply.status == 409:
            assert upstream.seen[0].request_id in conflict(reply)
    assert len(upstream.seen) == 1
    assert sum(isinstance(event, PointsHeld) for event in await site.events(anna)) == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_failure_before_the_first_byte_frees_the_key(
    site: RunningSite, upstream: FakeUpstream, streamed: bool
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    for script, status in (
        # First: a connection that served before would be replaced once, not given up.
        (Script(cut_before_head=True), 502),
        (Script(status=503), 503),
        (Script(status=400), 400),
        (Script(), 200),
    ):
        upstream.play(script)
        body = chat(model, stream=streamed)
        assert (await site.ask(anna.key, body, idempotency_key="k")).status == status
    conflict(await site.ask(anna.key, chat(model, stream=streamed), idempotency_key="k"))
    assert (await site.account(anna)).charged_upt == 1500


async def test_a_refusal_for_want_of_points_frees_the_key(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=PerCall(5_000_000_000))
    anna = await site.customer("1")
    for _ in range(2):
        assert (await site.ask(anna.key, chat(model), idempotency_key="k")).status == 402
    await site.grant(anna, "9")
    assert (await site.ask(anna.key, chat(model), idempotency_key="k")).status == 200
    assert "5 points" in conflict(await site.ask(anna.key, chat(model), idempotency_key="k"))
