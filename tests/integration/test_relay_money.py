"""What is held, how it grows, where an answer is cut, and that nobody pays twice or below zero."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from schemas.ledger import (
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsHeld,
    RequestRefused,
    ShortfallRecorded,
)
from schemas.prices import Free, PerCall, PerToken
from tests.conftest import Database, Server
from tests.site import (
    Customer,
    RunningSite,
    balances,
    bearer,
    chat,
    role_process,
    running_site,
    shared_site,
)
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

OUTPUT_ONLY = PerToken(input_npt=0, output_npt=1_000_000)
"""1,000 µpt an output token, input for nothing: what is affordable is easily seen."""
ONE_A_CALL = PerCall(1_000_000_000)


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


def used(prompt: int, completion: int) -> dict[str, int]:
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


async def held_of(site: RunningSite, customer: Customer) -> PointsHeld:
    return next(e for e in await site.events(customer) if isinstance(e, PointsHeld))


async def assert_never_below_zero(site: RunningSite, customer: Customer) -> None:
    found = balances(await site.events(customer))
    assert min(min(numbers) for numbers in found) >= 0


async def test_a_hold_is_the_upper_bound_of_input_and_output(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    for limits, output in (
        ({}, 4_096),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 9_000}, 4_096),
    ):
        model = site.model()
        await site.serves(upstream.url, model)
        anna = await site.customer("1000")
        assert (await site.ask(anna.key, chat(model, **limits))).status == 200
        held = await held_of(site, anna)
        assert held.output_bound == output
        assert held.amount_upt == held.input_bound * 100 + output * 200
        for name in ("max_tokens", "max_completion_tokens"):
            assert upstream.seen[-1].json.get(name) == limits.get(name)


async def test_a_hold_takes_no_more_than_what_is_available(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=OUTPUT_ONLY)
    anna = await site.customer("1.5")
    assert (await site.ask(anna.key, chat(model))).status == 200
    assert (await held_of(site, anna)).amount_upt == 1_500_000
    assert (await site.account(anna)).charged_upt == 3_000


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_providers_limit_is_lowered_to_what_can_be_paid_under_the_clients_name(
    site: RunningSite, upstream: FakeUpstream, name: str
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=OUTPUT_ONLY)
    anna = await site.customer("1.5")
    assert (await site.ask(anna.key, chat(model, **{name: 4_000}))).status == 200
    assert upstream.seen[-1].json[name] == 1_500
    assert {"max_tokens", "max_completion_tokens"} & set(upstream.seen[-1].json) == {name}
    # 3,000 µpt are spent; what is left pays for 1,497 tokens, in two choices.
    assert (await site.ask(anna.key, chat(model, n=2))).status == 200
    assert upstream.seen[-1].json["max_tokens"] == 748
    assert (await site.ask(anna.key, chat(model, **{name: 10}))).status == 200
    assert upstream.seen[-1].json[name] == 10


async def test_a_client_without_a_limit_is_not_refused_because_ours_is_too_large_for_the_model(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=OUTPUT_ONLY)
    anna = await site.customer("54")
    refusal = (
        "max_tokens is too large: 54000. This model supports at most 16384 completion tokens, "
        "whereas you provided 54000."
    )
    upstream.play(Script(status=400, error={"message": refusal, "param": "max_tokens"}))
    assert (await site.ask(anna.key, chat(model))).status == 200
    assert [seen.json["max_tokens"] for seen in upstream.seen] == [54_000, 16_384]
    assert (await site.ask(anna.key, chat(model, stream=True))).status == 200
    assert upstream.seen[-1].json["max_tokens"] == 16_384, "it is asked too much once"
    # A limit of the client's own is the client's matter: it hears what the model says.
    upstream.play(Script(status=400, error={"message": refusal}))
    reply = await site.ask(anna.key, chat(model, max_tokens=50_000))
    assert (reply.status, reply.error["message"]) == (400, refusal)
    assert len(upstream.seen) == 4
    assert (await site.account(anna)).charged_upt == 2 * 3_000


async def test_a_prompt_that_leaves_nothing_for_an_answer_is_refused_and_released(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer("0.3")
    long = [{"role": "user", "content": "many words " * 4_000}]
    reply = await site.ask(anna.key, chat(model, messages=long))
    assert (reply.status, reply.error["code"]) == (402, "insufficient_quota")
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldReleased)
    assert upstream.seen == []


async def test_a_long_answer_extends_its_hold_in_steps(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=OUTPUT_ONLY)
    anna = await site.customer("100")
    # 10 chunks of 3,000 bytes are estimated at 10,000 tokens, 4,096 are held for.
    upstream.play(Script(("abc" * 1_000,) * 10, usage=used(9, 9_500), gated=True))
    async with site.stream(anna.key, chat(model)) as answer:
        seen = await upstream.arrived()
        for _ in range(10):
            seen.allow(1)
            await answer.frame()
        assert (await answer.rest()).endswith(b"data: [DONE]\n\n")
    events = await site.events(anna)
    extended = [e.amount_upt for e in events if isinstance(e, HoldExtended)]
    assert extended == [2_048_000] * 3
    assert sum(extended) + (await held_of(site, anna)).amount_upt >= 9_500_000
    assert (await site.account(anna)).charged_upt == 9_500_000
    await assert_never_below_zero(site, anna)


async def test_an_answer_nobody_can_pay_further_is_cut_with_finish_reason_length(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=OUTPUT_ONLY)
    anna = await site.customer("2")
    # A provider that ignores its limit: 40 chunks of 100 tokens where 2,000 can be paid.
    words = tuple(" word" * 100 for _ in range(40))
    upstream.play(Script(words, usage=used(9, 4_000), chunk_delay_s=0.005))
    body = (await site.ask(anna.key, chat(model, stream=True))).body
    seen = upstream.seen[0]
    assert seen.json["max_tokens"] == 2_000
    *_, last, comment, done, nothing = body.split(b"\n\n")
    assert b'"finish_reason":"length"' in last
    assert comment == b": suanpan-points 2"
    assert (done, nothing) == (b"data: [DONE]", b"")
    await seen.until("client_left")
    assert seen.chunks_sent < 40
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert (end.basis, end.amount_upt) == ("counted", 2_000_000)
    state = await site.account(anna)
    assert (state.available_upt, state.held_upt) == (0, 0)
    assert state.shortfall_upt <= 100_000, "at most one chunk beyond what was paid"
    await assert_never_below_zero(site, anna)


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_cannot_be_paid_any_more_is_a_recorded_shortfall(
    site: RunningSite, upstream: FakeUpstream, streamed: bool
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=OUTPUT_ONLY)
    anna = await site.customer("2")
    upstream.play(Script(usage=used(9, 5_000)))
    reply = await site.ask(anna.key, chat(model, stream=streamed))
    assert reply.status == 200
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert (end.amount_upt, end.usage.output) == (2_000_000, 5_000)
    shortfall = (await site.events(anna))[-1]
    assert isinstance(shortfall, ShortfallRecorded)
    assert shortfall.amount_upt == 3_000_000
    said = reply.body if streamed else reply.headers["x-suanpan-points"].encode()
    assert b"suanpan-points 2\n" in said if streamed else said == b"2"
    await assert_never_below_zero(site, anna)


async def test_a_free_model_is_answered_without_points_and_recorded(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=Free())
    anna = await site.customer(None)
    reply = await site.ask(anna.key, chat(model))
    assert (reply.status, reply.headers["x-suanpan-points"]) == (200, "0")
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert (end.amount_upt, end.usage.input, end.usage.output) == (0, 9, 3)
    assert "max_tokens" not in upstream.seen[0].json


async def test_ten_points_answer_ten_of_two_hundred_parallel_calls(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=ONE_A_CALL)
    anna = await site.customer("10")
    upstream.default = Script(gated=True)
    calls = [
        asyncio.create_task(site.ask(anna.key, chat(model, stream=number % 2 == 0)))
        for number in range(200)
    ]
    for number in range(1, 11):
        (await upstream.arrived(number, 15)).allow(10)
    replies = await asyncio.gather(*calls)
    assert Counter(reply.status for reply in replies) == {200: 10, 402: 190}
    assert len(upstream.seen) == 10
    await assert_ten_paid(site, anna)


async def test_ten_points_answer_ten_calls_whichever_of_four_processes_is_asked(
    database: Database, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream())
        site = await stack.enter_async_context(running_site(database, tmp_path / "here"))
        await site.serves(upstream.url, price=ONE_A_CALL)
        anna = await site.customer("10")
        apis = await asyncio.gather(
            *(
                stack.enter_async_context(role_process("api", database, tmp_path / f"api{number}"))
                for number in range(4)
            )
        )
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )

        async def ask(number: int) -> int:
            async with session.post(
                f"{apis[number % 4].url}/v1/chat/completions",
                headers=bearer(anna.key),
                json=chat(stream=number % 3 == 0),
            ) as response:
                await response.read()
                return response.status

        statuses = Counter(await asyncio.gather(*(ask(number) for number in range(200))))
        assert statuses == {200: 10, 402: 190}
        await assert_ten_paid(site, anna)


async def assert_ten_paid(site: RunningSite, anna: Customer) -> None:
    """Ten outcomes, ten points gone, and no prefix of the account's log below zero."""
    ends = await site.ended(anna, 10)
    assert [type(end) for end in ends] == [HoldSettled] * 10
    state = await site.account(anna)
    assert (state.posted_upt, state.held_upt, state.charged_upt) == (0, 0, 10_000_000)
    events = await site.events(anna)
    assert sum(isinstance(event, RequestRefused) for event in events) == 60, "capped per hour"
    await assert_never_below_zero(site, anna)
