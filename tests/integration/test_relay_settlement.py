"""The settlement table, cell by cell: what the upstream did × when the client left.

A gated upstream gives one chunk at a time, so that "after the first token" is a fact, not luck.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from backend.kit.tokenizer import Tokenizer
from schemas.ledger import HoldReleased, HoldSettled, PointsHeld, ReleaseReason
from schemas.money import format_points
from schemas.prices import cost_of
from schemas.usage import Basis
from tests.conftest import Server
from tests.site import PRICE, Customer, RunningSite, chat, shared_site
from tests.upstream import FakeUpstream, Script, Seen

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPORTED_UPT = 9 * 100 + 3 * 200
"""What the fake upstream's usage (9 in, 3 out) costs under the harness's price."""
TEXTS = ("Alpha ", "beta ", "gamma ", "delta.")
SLACK_S = 1.5
"""On top of a deadline of the product: how late a busy machine may notice."""


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


class Case:
    """One customer and one model of the shared site; one call."""

    def __init__(self, site: RunningSite, upstream: FakeUpstream, model: str, customer: Customer):
        self.site, self.upstream, self.model, self.customer = site, upstream, model, customer

    async def end(self) -> HoldSettled | HoldReleased:
        """The one outcome of the one request; nothing is held afterwards and no other charge."""
        ends = await self.site.ended(self.customer)
        await self.site.idle()
        events = await self.site.events(self.customer)
        assert len(ends) == sum(isinstance(event, PointsHeld) for event in events) == 1
        state = await self.site.account(self.customer)
        charged_upt = ends[0].amount_upt if isinstance(ends[0], HoldSettled) else 0
        assert (state.held_upt, state.holds, state.charged_upt) == (0, {}, charged_upt)
        return ends[0]

    async def settled(self, basis: Basis, texts: tuple[str, ...] = ()) -> HoldSettled:
        """Settled on this basis: the provider's numbers, or our count of exactly these texts."""
        end = await self.end()
        assert isinstance(end, HoldSettled), end
        assert end.basis is basis
        assert end.amount_upt == cost_of(PRICE, end.usage)
        if basis is Basis.REPORTED:
            assert end.amount_upt == REPORTED_UPT
        else:
            assert end.usage.output == await count("".join(texts))
            assert end.usage.input > 0
        return end

    async def released(self, reason: ReleaseReason) -> HoldReleased:
        end = await self.end()
        assert isinstance(end, HoldReleased), end
        assert end.reason is reason
        return end


async def count(text: str) -> int:
    tokenizer = Tokenizer()
    try:
        return await tokenizer.count_off_loop("m", text)
    finally:
        tokenizer.close()


@pytest_asyncio.fixture(loop_scope="module")
async def case(site: RunningSite, upstream: FakeUpstream) -> Case:
    return await new_case(site, upstream)


async def new_case(site: RunningSite, upstream: FakeUpstream) -> Case:
    model = site.model()
    await site.serves(upstream.url, model)
    return Case(site, upstream, model, await site.customer())


async def left_before_a_token(case: Case) -> Seen:
    """A streamed call whose client hangs up once the upstream has it; nothing came back yet."""
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        seen = await seen_for(case.upstream, case.model)
        answer.drop()
    await case.site.noticed()
    return seen


async def seen_for(upstream: FakeUpstream, model: str) -> Seen:
    """The upstream's side of the one call for a model."""
    async with asyncio.timeout(10):
        while True:
            for seen in upstream.seen:
                if seen.json["model"] == model:
                    return seen
            await asyncio.sleep(0.005)


def points_said(body: bytes) -> str:
    """The points of the comment that comes just before `[DONE]`."""
    comment = body.split(b"\n\n")[-3]
    assert body.endswith(b"\n\ndata: [DONE]\n\n")
    assert comment.startswith(b": suanpan-points ")
    return comment.removeprefix(b": suanpan-points ").decode()


async def streamed_whole(case: Case) -> bytes:
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        assert (await answer.opened()).status == 200
        return await answer.rest()


# Upstream complete, usage given.


async def test_a_stream_read_to_its_end_is_charged_what_was_reported(case: Case) -> None:
    body = await streamed_whole(case)
    end = await case.settled(Basis.REPORTED)
    assert points_said(body) == format_points(end.amount_upt) == "0.0015"
    assert (end.usage.input, end.usage.output) == (9, 3)
    assert (end.served.status, end.served.attempts, end.served.error) == (200, 1, None)


async def test_a_whole_answer_is_charged_what_was_reported(case: Case) -> None:
    reply = await case.site.ask(case.customer.key, chat(case.model))
    end = await case.settled(Basis.REPORTED)
    assert (reply.status, reply.headers["x-suanpan-points"]) == (200, "0.0015")
    assert reply.headers["x-request-id"] == end.request_id


async def test_usage_on_the_last_chunk_counts_as_reported(case: Case) -> None:
    case.upstream.play(Script(usage_in_last_chunk=True))
    await streamed_whole(case)
    await case.settled(Basis.REPORTED)


async def test_a_client_that_leaves_after_the_first_token_pays_the_reported_usage_if_it_comes(
    case: Case,
) -> None:
    case.upstream.play(Script(TEXTS, gated=True))
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        seen = await case.upstream.arrived()
        seen.allow(1)
        assert b"Alpha" in await answer.frame()
        answer.drop()
    await case.site.noticed()
    seen.allow(len(TEXTS))
    end = await case.settled(Basis.REPORTED)
    assert seen.finished
    assert end.served.status == 0


async def test_an_upstream_is_read_on_for_two_seconds_then_cancelled_and_counted(
    case: Case,
) -> None:
    case.upstream.play(Script(TEXTS, gated=True))
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        seen = await case.upstream.arrived()
        seen.allow(2)
        await answer.frames(2)
        left_at_s = time.time()
        answer.drop()
    await seen.until("client_left")
    assert seen.client_left_at_s is not None
    assert 1.5 <= seen.client_left_at_s - left_at_s <= 2 + SLACK_S
    end = await case.settled(Basis.COUNTED, TEXTS[:2])
    assert (end.served.status, end.served.error) == (0, "client_left")


async def test_an_upstream_is_cancelled_within_a_second_when_the_client_leaves_before_a_token(
    case: Case,
) -> None:
    case.upstream.play(Script(TEXTS, gated=True))
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        seen = await case.upstream.arrived()
        left_at_s = time.time()
        answer.drop()
    await seen.until("client_left")
    assert seen.client_left_at_s is not None
    assert seen.client_left_at_s - left_at_s <= 1 + SLACK_S
    end = await case.released(ReleaseReason.CLIENT_LEFT)
    assert end.served.status == 0


async def test_usage_that_still_comes_is_charged_though_the_client_left_before_a_token(
    case: Case,
) -> None:
    case.upstream.play(Script(TEXTS, gated=True))
    seen = await left_before_a_token(case)
    seen.allow(len(TEXTS))
    await case.settled(Basis.REPORTED)


@pytest.mark.parametrize("hangs", [True, False])
async def test_an_answer_is_whole_once_its_end_was_said_whatever_becomes_of_the_connection(
    site: RunningSite, hangs: bool
) -> None:
    """After `[DONE]` the provider keeps the connection open; or it is lost just before `[DONE]`."""
    frame = (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}\n\n'
    )
    said = frame + b"data: [DONE]\n\n" if hangs else frame

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"content-length: 100000\r\n\r\n" + said)
        await writer.drain()
        if hangs:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        model = site.model()
        await site.serves(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", model)
        anna = await site.customer()
        began_s = time.monotonic()
        body = (await site.ask(anna.key, chat(model, stream=True))).body
        assert time.monotonic() - began_s < 1 + SLACK_S
        assert points_said(body) == "0.0015"
        (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert (end.basis, end.served.error) == (Basis.REPORTED, None)


# Upstream complete, no usage.


@pytest.mark.parametrize("send_done", [True, False])
async def test_a_complete_stream_without_usage_is_counted(case: Case, send_done: bool) -> None:
    case.upstream.play(Script(TEXTS, usage=None, send_done=send_done))
    body = await streamed_whole(case)
    end = await case.settled(Basis.COUNTED, TEXTS)
    assert points_said(body) == format_points(end.amount_upt)
    assert end.served.error is None


async def test_a_whole_answer_without_usage_is_counted(case: Case) -> None:
    case.upstream.play(Script(TEXTS, usage=None))
    reply = await case.site.ask(case.customer.key, chat(case.model))
    end = await case.settled(Basis.COUNTED, TEXTS)
    assert reply.headers["x-suanpan-points"] == format_points(end.amount_upt)


async def test_reasoning_and_tool_arguments_are_counted_as_output(case: Case) -> None:
    case.upstream.play(Script(("{}",), reasoning=("Think. ",), tool_name="look", usage=None))
    await streamed_whole(case)
    await case.settled(Basis.COUNTED, ("Think. ", "look{}"))


async def test_an_answer_completed_after_the_client_left_is_counted_without_usage(
    case: Case,
) -> None:
    case.upstream.play(Script(TEXTS, gated=True, usage=None))
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        seen = await case.upstream.arrived()
        seen.allow(1)
        await answer.frame()
        answer.drop()
    await case.site.noticed()
    seen.allow(len(TEXTS))
    await case.settled(Basis.COUNTED, TEXTS)


async def test_an_answer_that_came_after_all_is_counted_though_the_client_left_before_a_token(
    case: Case,
) -> None:
    case.upstream.play(Script(TEXTS, gated=True, usage=None))
    seen = await left_before_a_token(case)
    seen.allow(len(TEXTS))
    await case.settled(Basis.COUNTED, TEXTS)


async def test_an_empty_answer_to_a_client_that_left_is_released(case: Case) -> None:
    case.upstream.play(Script((), usage=None, first_byte_delay_s=0.3))
    await left_before_a_token(case)
    await case.released(ReleaseReason.CLIENT_LEFT)


# Upstream cut mid-stream.


async def test_a_stream_cut_after_each_chunk_is_charged_for_what_was_received(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    """A lost connection, half a frame, an end without an end; after one chunk, two, … all."""

    async def cut(script: Script, received: int) -> None:
        case = await new_case(site, upstream)
        upstream.by_model[case.model] = script
        body = await streamed_whole(case)
        end = await case.settled(Basis.COUNTED, TEXTS[:received])
        assert end.served.error == "upstream_error"
        assert b"[DONE]" not in body
        assert body.count(b'"content"') == received
        assert b'"code":"upstream_error"' in body.split(b"\n\n")[-2]

    await asyncio.gather(
        *(cut(Script(TEXTS, cut_after=k), k) for k in range(1, len(TEXTS) + 1)),
        *(cut(Script(TEXTS, half_frame_after=k), k) for k in range(1, len(TEXTS) + 1)),
        *(cut(Script(TEXTS, end_early_after=k), k) for k in range(1, len(TEXTS) + 1)),
    )


async def test_an_error_frame_inside_a_stream_ends_it_and_what_came_is_counted(case: Case) -> None:
    case.upstream.play(Script(TEXTS, error_frame_after=2))
    body = await streamed_whole(case)
    await case.settled(Basis.COUNTED, TEXTS[:2])
    assert b"scripted failure" not in body
    assert b'"error"' in body.split(b"\n\n")[-2]


async def test_a_stream_cut_after_the_client_left_is_counted(case: Case) -> None:
    case.upstream.play(Script(TEXTS, gated=True, cut_after=2))
    async with case.site.stream(case.customer.key, chat(case.model)) as answer:
        seen = await case.upstream.arrived()
        seen.allow(1)
        await answer.frame()
        answer.drop()
    await case.site.noticed()
    seen.allow(len(TEXTS))
    await case.settled(Basis.COUNTED, TEXTS[:2])


async def test_a_stream_cut_after_the_client_left_before_a_token_is_released(case: Case) -> None:
    case.upstream.play(Script(TEXTS, gated=True, cut_after=2))
    seen = await left_before_a_token(case)
    seen.allow(len(TEXTS))
    await case.released(ReleaseReason.CLIENT_LEFT)


# Error or timeout before the first token.


async def test_an_error_before_the_first_token_costs_nothing(case: Case) -> None:
    case.upstream.play(Script(status=500))
    reply = await case.site.ask(case.customer.key, chat(case.model, stream=True))
    assert reply.status == 502
    await case.released(ReleaseReason.UPSTREAM_ERROR)


async def test_a_connection_cut_before_the_head_costs_nothing(case: Case) -> None:
    for streamed in (True, False):
        case.upstream.play(Script(cut_before_head=True))
        reply = await case.site.ask(case.customer.key, chat(case.model, stream=streamed))
        assert reply.status == 502
    assert (await case.site.account(case.customer)).charged_upt == 0
    assert len(await case.site.ended(case.customer, 2)) == 2


async def test_a_connection_cut_between_head_and_first_token_costs_nothing(case: Case) -> None:
    case.upstream.play(Script(TEXTS, cut_after=0))
    reply = await case.site.ask(case.customer.key, chat(case.model, stream=True))
    assert reply.status == 502
    assert reply.error["code"] == "upstream_error"
    await case.released(ReleaseReason.UPSTREAM_ERROR)


async def test_an_error_after_the_client_left_before_a_token_costs_nothing(case: Case) -> None:
    case.upstream.play(Script(status=500, first_byte_delay_s=0.3))
    await left_before_a_token(case)
    await case.released(ReleaseReason.CLIENT_LEFT)


async def test_a_whole_answer_cut_in_the_middle_costs_nothing(case: Case) -> None:
    case.upstream.play(Script(TEXTS, cut_after=0))
    reply = await case.site.ask(case.customer.key, chat(case.model))
    assert reply.status == 502
    await case.released(ReleaseReason.UPSTREAM_ERROR)


# The client dropped after each chunk.


async def test_a_client_dropped_after_each_chunk_pays_for_what_was_received(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    """All at once: each waits out the product's own two seconds."""

    async def dropped_after(received: int) -> None:
        case = await new_case(site, upstream)
        async with site.stream(case.customer.key, chat(case.model)) as answer:
            seen = await seen_for(upstream, case.model)
            seen.allow(received)
            await answer.frames(received)
            answer.drop()
        await seen.until("client_left")
        if received:
            await case.settled(Basis.COUNTED, TEXTS[:received])
        else:
            await case.released(ReleaseReason.CLIENT_LEFT)

    upstream.default = Script(TEXTS, gated=True)
    await asyncio.gather(*(dropped_after(k) for k in range(len(TEXTS))))


async def test_a_client_that_left_a_whole_answer_pays_for_it_all_the_same(case: Case) -> None:
    case.upstream.play(Script(TEXTS, gated=True))
    call = asyncio.create_task(case.site.ask(case.customer.key, chat(case.model)))
    seen = await case.upstream.arrived()
    call.cancel()
    with pytest.raises((asyncio.CancelledError, aiohttp.ClientError)):
        await call
    seen.allow(1)
    end = await case.settled(Basis.REPORTED)
    assert end.request_id == seen.request_id
