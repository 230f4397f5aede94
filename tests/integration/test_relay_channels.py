"""Which channel is tried, when the next one is, and what a client hears when none answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from schemas.ledger import HoldReleased, HoldSettled, PointsHeld
from tests.conftest import Server
from tests.site import Customer, RunningSite, chat, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(
        server,
        tmp_path_factory.mktemp("site"),
        relay_connect_timeout_s=2.0,
        relay_first_byte_timeout_s=0.5,
        relay_idle_timeout_s=0.5,
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def two() -> AsyncIterator[tuple[FakeUpstream, FakeUpstream]]:
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(FakeUpstream()),
            await stack.enter_async_context(FakeUpstream()),
        )


Pair = tuple[FakeUpstream, FakeUpstream]


async def pair_of(site: RunningSite, two: Pair, *priorities: int) -> tuple[str, Customer]:
    """One model behind two channels of these priorities."""
    model = site.model()
    for upstream, priority in zip(two, priorities, strict=True):
        await site.serves(upstream.url, model, priority=priority)
    return model, await site.customer("100")


FAILURES = (
    Script(status=500),
    Script(status=503),
    Script(status=429),
    Script(status=401),
    Script(cut_before_head=True),
    Script(cut_after=0),
    Script(error_frame_after=0),
    Script(first_byte_delay_s=3.0),
)


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_next_channel_answers_when_one_fails_before_its_first_byte(
    site: RunningSite, two: Pair, streamed: bool
) -> None:
    first, second = two
    for script in FAILURES:
        if script.cut_after == 0 and not streamed:
            continue  # the body of a whole answer has begun by then
        model, anna = await pair_of(site, two, 2, 1)
        first.by_model[model] = script
        reply = await site.ask(anna.key, chat(model, stream=streamed))
        assert reply.status == 200, script
        assert b"scripted failure" not in reply.body
        (end,) = await site.ended(anna)
        assert isinstance(end, HoldSettled)
        assert end.served.attempts == 2
        assert end.amount_upt == 1500
        assert second.seen[-1].json["model"] == model
        assert first.seen[-1].request_id == second.seen[-1].request_id


async def test_no_other_channel_is_tried_once_a_byte_was_passed_on(
    site: RunningSite, two: Pair
) -> None:
    first, second = two
    for script in (
        Script(cut_after=1),
        Script(error_frame_after=1),
        Script(chunk_delay_s=0.0, texts=("", "never"), cut_after=1),
    ):
        model, anna = await pair_of(site, two, 2, 1)
        first.by_model[model] = script
        reply = await site.ask(anna.key, chat(model, stream=True))
        assert reply.status == 200
        assert b'"code":"upstream_error"' in reply.body.split(b"\n\n")[-2]
        assert reply.body.count(b'"choices"') == 1
        (end,) = await site.ended(anna)
        # A chunk without a token was passed on: nothing is owed, and nobody else is asked.
        assert isinstance(end, HoldSettled if script.texts[0] else HoldReleased)
    assert second.seen == []


async def test_a_whole_answer_that_breaks_off_is_not_asked_for_again(
    site: RunningSite, two: Pair
) -> None:
    model, anna = await pair_of(site, two, 2, 1)
    two[0].by_model[model] = Script(cut_after=0)
    reply = await site.ask(anna.key, chat(model))
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert two[1].seen == []


async def test_a_refusal_of_the_request_itself_is_not_tried_elsewhere(
    site: RunningSite, two: Pair
) -> None:
    model, anna = await pair_of(site, two, 2, 1)
    for status in (400, 422):
        error = {"message": "temperature must be below 2", "type": "invalid_request_error"}
        two[0].by_model[model] = Script(status=status, error=error)
        reply = await site.ask(anna.key, chat(model, stream=True))
        assert reply.status == status
        assert reply.error["message"] == "temperature must be below 2"
        assert reply.error["type"] == "invalid_request_error"
    two[0].by_model[model] = Script(
        status=400, error={"message": "too long", "code": "context_length_exceeded"}
    )
    reply = await site.ask(anna.key, chat(model))
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert two[1].seen == []
    del two[0].by_model[model]
    assert (await site.ask(anna.key, chat(model))).status == 200
    assert two[1].seen == [], "a bad request does not make a channel rest"
    assert (await site.account(anna)).charged_upt == 1500


async def test_the_higher_priority_is_tried_first_and_weights_share_one_priority(
    site: RunningSite, two: Pair
) -> None:
    model, anna = await pair_of(site, two, 1, 2)
    for _ in range(5):
        assert (await site.ask(anna.key, chat(model))).status == 200
    assert [len(upstream.seen) for upstream in two] == [0, 5]
    model = site.model()
    heavy = await site.serves(two[0].url, model, weight=9)
    light = await site.serves(two[1].url, model, weight=1)
    for _ in range(40):
        await site.ask(anna.key, chat(model))
    first = Counter(
        event.channels[0]
        for event in await site.events(anna)
        if isinstance(event, PointsHeld) and event.model == model
    )
    # 40 draws at 9 to 1: less than 20 for the heavy one comes once in 10**10 runs.
    assert first[heavy] + first[light] == 40
    assert first[heavy] > 20


async def test_a_channel_rests_after_a_failure_and_others_are_asked_meanwhile(
    site: RunningSite, two: Pair
) -> None:
    first, second = two
    model, anna = await pair_of(site, two, 2, 1)
    first.by_model[model] = Script(fail_first=1)
    for _ in range(3):
        assert (await site.ask(anna.key, chat(model))).status == 200
    assert (len(first.seen), len(second.seen)) == (1, 3)


async def test_where_all_channels_rest_the_first_to_recover_is_tried(
    site: RunningSite, two: Pair
) -> None:
    first, second = two
    model, anna = await pair_of(site, two, 2, 1)
    first.by_model[model] = Script(status=429, retry_after="3000")
    second.by_model[model] = Script(status=429, retry_after="60")
    reply = await site.ask(anna.key, chat(model))
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    first.by_model.clear()
    second.by_model.clear()
    assert (await site.ask(anna.key, chat(model))).status == 200
    assert (len(first.seen), len(second.seen)) == (1, 2)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_busy_provider_is_passed_on_with_retry_after_and_success_is_charged_once(
    site: RunningSite, two: Pair, status: int, streamed: bool
) -> None:
    model, anna = site.model(), await site.customer()
    await site.serves(two[0].url, model)
    two[0].play(Script(status=status, retry_after="7"))
    reply = await site.ask(anna.key, chat(model, stream=streamed))
    assert (reply.status, reply.headers["retry-after"]) == (status, "7")
    assert reply.error["type"] == ("rate_limit_error" if status == 429 else "server_error")
    assert (await site.ask(anna.key, chat(model, stream=streamed))).status == 200
    released, settled = await site.ended(anna, 2)
    assert isinstance(released, HoldReleased)
    assert isinstance(settled, HoldSettled)
    assert (await site.account(anna)).charged_upt == settled.amount_upt == 1500


@pytest.mark.parametrize("streamed", [True, False])
async def test_each_cause_has_its_own_status(site: RunningSite, two: Pair, streamed: bool) -> None:
    causes = (
        (Script(status=500), 502, "upstream_error"),
        (Script(status=401), 502, "upstream_error"),
        (Script(status=404), 502, "upstream_error"),
        (Script(status=402), 503, "upstream_unavailable"),
        (Script(status=503), 503, "upstream_unavailable"),
        (Script(status=429), 429, "rate_limit_exceeded"),
        (Script(first_byte_delay_s=3.0), 504, "upstream_timeout"),
        (Script(cut_before_head=True), 502, "upstream_error"),
    )
    anna = await site.customer("100")
    for script, status, code in causes:
        model = site.model()
        await site.serves(two[0].url, model)
        two[0].by_model[model] = script
        reply = await site.ask(anna.key, chat(model, stream=streamed))
        assert (reply.status, reply.error["code"]) == (status, code), script
        assert reply.headers["x-request-id"]
    model = site.model()
    await site.serves("http://127.0.0.1:1/v1", model)
    reply = await site.ask(anna.key, chat(model, stream=streamed))
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert (await site.account(anna)).charged_upt == 0


async def test_an_answer_that_falls_silent_is_cut_and_counted(site: RunningSite, two: Pair) -> None:
    model, anna = site.model(), await site.customer()
    await site.serves(two[0].url, model)
    two[0].play(Script(gated=True))
    async with site.stream(anna.key, chat(model)) as answer:
        (await two[0].arrived()).allow(1)
        body = await answer.rest()
    assert b'"code":"upstream_timeout"' in body.split(b"\n\n")[-2]
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert (end.basis, end.served.error) == ("counted", "upstream_timeout")
