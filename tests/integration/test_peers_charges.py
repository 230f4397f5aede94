"""What calls were charged wrongly elsewhere are charged rightly here (docs/peers.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from backend.folds import ALL_FOLDS
from backend.journal.view import load_states
from backend.ledger.points import account_state
from schemas.ledger import HoldSettled, PointsHeld, RequestRefused
from schemas.prices import Free, PerCall, PerToken
from schemas.usage import Basis, Usage
from tests.conftest import Server
from tests.given import POINT
from tests.integration.audited_site import audited, project
from tests.site import RunningSite, balances, chat, outcomes, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Chunks come as the network likes, and a price must not. " * 6
CRUMBS = PerToken(input_npt=7, output_npt=1)
"""Nine tokens in, three out: 66 nano-points, which is no whole micro-point."""
LINES = """
SELECT amount_upt, balance_upt FROM read.statement WHERE stream = %s ORDER BY version
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(server, tmp_path_factory.mktemp("site")) as running:
        yield running
        report = await audited(running.database.app_url)
        assert report.ok, report.first


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def test_the_size_of_a_providers_chunks_does_not_decide_the_price(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    """By our own count as by the provider's; whole, in one piece, in words, in characters."""
    words = tuple(word + " " for word in TEXT.split())
    for usage in (None, {"prompt_tokens": 9, "completion_tokens": 80, "total_tokens": 89}):
        model, prices = site.model(), set[int]()
        await site.serves(upstream.url, model)
        anna = await site.customer()
        ways = ((TEXT,), words, tuple(TEXT))
        for texts in ways:
            assert "".join(texts) == TEXT
            upstream.play(Script(texts, usage=usage))
            assert (await site.ask(anna.key, chat(model, stream=True))).status == 200
        upstream.play(Script((TEXT,), usage=usage))
        assert (await site.ask(anna.key, chat(model))).status == 200
        for end in await site.ended(anna, len(ways) + 1):
            assert isinstance(end, HoldSettled)
            assert end.basis is (Basis.COUNTED if usage is None else Basis.REPORTED)
            prices.add(end.amount_upt)
        assert len(prices) == 1


async def test_many_tiny_calls_add_up_to_the_balances_change_to_the_micro_point(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=CRUMBS)
    anna = await site.customer("1.000001")
    replies = await asyncio.gather(
        *(site.ask(anna.key, chat(model, stream=number % 2 == 0)) for number in range(60))
    )
    assert {reply.status for reply in replies} == {200}
    ends = await site.ended(anna, 60)
    charges = [end.amount_upt for end in ends if isinstance(end, HoldSettled)]
    assert charges == [1] * 60, "each rounds up once to a micro-point, and none to nothing"
    state = await site.account(anna)
    assert (state.charged_upt, state.available_upt) == (60, POINT + 1 - 60)
    await project(site.database.app_url)
    async with site.base.pool.connection() as connection:
        lines = await (await connection.execute(LINES, (anna.account,))).fetchall()
    assert [amount for amount, _ in lines] == [POINT + 1] + [-1] * 60
    assert lines[-1][1] == POINT + 1 - 60 == sum(amount for amount, _ in lines)


async def test_cached_and_reasoning_tokens_of_the_provider_are_priced(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    usage = {
        "prompt_tokens": 1_000,
        "completion_tokens": 500,
        "total_tokens": 1_500,
        "prompt_tokens_details": {"cached_tokens": 900},
        "completion_tokens_details": {"reasoning_tokens": 400},
    }
    model = site.model()
    price = PerToken(input_npt=100_000, output_npt=200_000, cached_input_npt=10_000)
    await site.serves(upstream.url, model, price=price)
    anna = await site.customer()
    for streamed in (True, False):
        upstream.play(Script(usage=usage))
        assert (await site.ask(anna.key, chat(model, stream=streamed))).status == 200
    for end in await site.ended(anna, 2):
        assert isinstance(end, HoldSettled)
        assert end.usage == Usage(input=100, cached_input=900, output=500, reasoning=400)
        # Cached input at its own price and not again as input; reasoning once, within output.
        assert end.amount_upt == 100 * 100 + 900 * 10 + 500 * 200


async def test_an_answer_that_is_reported_to_have_used_nothing_is_counted(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    for streamed in (True, False):
        upstream.play(Script((TEXT,), usage=nothing))
        assert (await site.ask(anna.key, chat(model, stream=streamed))).status == 200
    for end in await site.ended(anna, 2):
        assert isinstance(end, HoldSettled)
        assert end.basis is Basis.COUNTED
        assert end.usage.output > 50


async def test_the_words_of_an_error_are_not_charged_as_an_answer(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    long = {"message": "The upstream is overloaded. " * 2_000, "type": "server_error"}
    charges: set[int] = set()
    for error in (long, {"message": "x"}):
        model = site.model()
        await site.serves(upstream.url, model)
        anna = await site.customer()
        upstream.play(Script(error_frame_after=1, error=error, usage=None))
        assert (await site.ask(anna.key, chat(model, stream=True))).status == 200
        upstream.play(Script(error_frame_after=1, error=error, usage=None))
        assert (await site.ask(anna.key, chat(model))).status == 502
        upstream.play(Script(error_frame_after=0, error=error, usage=None))
        assert (await site.ask(anna.key, chat(model, stream=True))).status == 502
        ends = await site.ended(anna, 3)
        charges |= {sum(end.amount_upt for end in ends if isinstance(end, HoldSettled))}
        assert sum(isinstance(end, HoldSettled) for end in ends) == 1
    assert len(charges) == 1


async def test_however_rich_an_account_is_every_call_is_held_in_full(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=PerCall(1_000_000_000))
    anna = await site.customer("900000")
    upstream.default = Script(gated=True)
    calls = [
        asyncio.create_task(site.ask(anna.key, chat(model, stream=number % 2 == 0)))
        for number in range(20)
    ]
    await upstream.arrived(20, 15)
    state = await site.account(anna)
    assert (len(state.holds), state.held_upt) == (20, 20 * POINT)
    for seen in upstream.seen:
        seen.allow(10)
    assert {reply.status for reply in await asyncio.gather(*calls)} == {200}
    held = [event for event in await site.events(anna) if isinstance(event, PointsHeld)]
    assert [event.amount_upt for event in held] == [POINT] * 20


async def test_calls_on_an_account_that_was_given_nothing_credit_nothing(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model, free = site.model(), site.model()
    await site.serves(upstream.url, model)
    await site.serves(upstream.url, free, price=Free())
    anna = await site.customer(None)
    assert (await site.ask(anna.key, chat(model))).status == 402
    upstream.play(Script(usage={"prompt_tokens": 9, "completion_tokens": 900_000}))
    assert (await site.ask(anna.key, chat(free))).status == 200
    upstream.play(Script(cut_after=2), Script(status=500))
    for _ in range(2):
        await site.ask(anna.key, chat(free, stream=True))
    await site.ended(anna, 3)
    assert (await site.ask(anna.key, chat(model, stream=True))).status == 402
    events = await site.events(anna)
    assert all(numbers == (0, 0, 0) for numbers in balances(events))
    assert sum(isinstance(event, RequestRefused) for event in events) == 2
    assert len(outcomes(events)) == 3
    async with site.base.pool.connection() as connection:
        states = await load_states(connection, ALL_FOLDS, [anna.account])
    assert account_state(states[anna.account][1]).issued_upt == 0
