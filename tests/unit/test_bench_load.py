"""The benchmark's load generator against its mock upstream, and against upstreams that fail it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from bench.load import run_load
from bench.plan import Plan, Report, Target
from bench.session import requests_of
from bench.shapes import (
    CHAT,
    PACED,
    SLOW,
    STAMP,
    RequestSent,
    frames_of,
    request_body,
    whole_answer,
)
from bench.upstream import start_upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Target]:
    server = await start_upstream()
    yield Target("127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()


async def measured(plan: Plan) -> Report:
    told: list[Report] = []

    async def go() -> None:
        return

    async with asyncio.timeout(20):
        await run_load(plan, go, told.append)
    return told[0]


async def answering(head: bytes, body: bytes) -> tuple[asyncio.Server, Target]:
    """A server that gives every request the same answer, whatever it was."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.read(65_536)) != b"":
            writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    server = await asyncio.start_server(answer, "127.0.0.1")
    return server, Target("127.0.0.1", server.sockets[0].getsockname()[1])


def test_the_bytes_have_the_sizes_that_the_method_names():
    assert 800 < len(requests_of(Plan((), CHAT.model, 1, keys=("sk-" + "x" * 40,)))[0]) < 1_000
    assert 950 < len(whole_answer(CHAT.model)) < 1_150
    frames = frames_of(PACED.model)
    assert 190 < len(frames.before) + 18 + len(frames.after) < 225


async def test_whole_answers_are_counted_and_timed(upstream: Target):
    report = await measured(Plan((upstream,), CHAT.model, 0.2, parallel=4, warm_s=0.05))
    assert report.errors == 0
    assert report.calls > 20
    assert report.latency.count == report.calls
    assert 0 < report.latency.p50_ms <= report.latency.p99_ms <= report.latency.max_ms
    assert report.chunks == 0


async def test_every_event_of_a_burst_is_counted_with_its_transit(upstream: Target):
    plan = Plan((upstream,), CHAT.model, 0.3, parallel=2, events=CHAT.events, warm_s=0.05)
    report = await measured(plan)
    assert report.errors == 0
    assert report.calls > 2
    # Of the first stream of each connection a part came before the measurement.
    assert report.chunks > (report.calls - plan.parallel) * CHAT.events
    assert report.transit.count == report.chunks
    assert 0 < report.transit.p50_ms < 1_000


async def test_a_paced_stream_keeps_its_pace(upstream: Target):
    plan = Plan((upstream,), PACED.model, 0.5, parallel=1, events=PACED.events, warm_s=0.1)
    report = await measured(plan)
    assert report.errors == 0
    assert 25 < report.chunks <= 55
    assert report.open_now == 1


async def test_slow_streams_stay_open_and_are_given_up_at_the_end(upstream: Target):
    plan = Plan((upstream,), SLOW.model, 0.2, 10, events=SLOW.events, warm_s=0.2, drain_s=0)
    report = await measured(plan)
    assert report.open_now == 10
    assert report.errors == 0


async def test_an_open_loop_offers_its_rate_and_no_more(upstream: Target):
    plan = Plan((upstream,), CHAT.model, 0.5, parallel=4, rate_per_s=200, warm_s=0.05)
    report = await measured(plan)
    assert report.errors == 0
    assert 60 < report.calls <= 105


async def test_a_load_ends_after_its_last_call(upstream: Target):
    report = await measured(Plan((upstream,), CHAT.model, 5, calls_max=50, warm_s=0.1))
    assert report.errors == 0
    assert report.seconds < 3


async def test_a_refused_call_is_an_error_and_no_call(upstream: Target):
    report = await measured(Plan((upstream,), "no-such-model", 0.1, warm_s=0.05))
    assert report.errors > 0
    assert report.calls == 0
    assert report.first_errors[0].startswith("status 404")


async def test_a_stream_cut_short_is_an_error():
    event = b'data: {"choices":[{"delta":{"content":"@000000000000000001@"}}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\n"
    server, target = await answering(head, event)
    report = await measured(Plan((target,), CHAT.model, 0.1, events=2, warm_s=0.05))
    server.close()
    assert "a stream without [DONE]" in report.first_errors
    server, target = await answering(head, event + b"data: [DONE]\n\n")
    report = await measured(Plan((target,), CHAT.model, 0.1, events=2, warm_s=0.05))
    server.close()
    assert "1 events instead of 2" in report.first_errors
    assert report.calls == 0


async def test_an_answer_without_usage_is_an_error():
    server, target = await answering(b"HTTP/1.1 200 OK\r\n", b"{}")
    report = await measured(Plan((target,), CHAT.model, 0.1, warm_s=0.05))
    server.close()
    assert "an answer without usage" in report.first_errors


async def test_the_upstream_speaks_openai_to_an_ordinary_client(upstream: Target):
    url = f"http://{upstream.host}:{upstream.port}/v1/chat/completions"
    async with httpx.AsyncClient() as client:
        whole = await client.post(url, content=request_body(RequestSent(CHAT.model, False)))
        assert whole.json()["usage"]["completion_tokens"] == 150
        asked = {"model": CHAT.model, "stream": True, "stream_options": {"include_usage": True}}
        streamed = await client.post(url, json=asked)
    lines = [line for line in streamed.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert '"usage":{' in lines[-2]
    assert len(STAMP.findall(streamed.content)) == CHAT.events


async def test_without_being_asked_the_upstream_sends_no_usage_frame(upstream: Target):
    url = f"http://{upstream.host}:{upstream.port}/v1/chat/completions"
    async with httpx.AsyncClient() as client:
        streamed = await client.post(url, json={"model": CHAT.model, "stream": True})
    assert "usage" not in streamed.text


async def test_the_keys_are_taken_in_turn():
    plan = Plan((), CHAT.model, 1, keys=("sk-a", "sk-b"))
    requests = requests_of(plan)
    assert [b"Bearer sk-a" in requests[0], b"Bearer sk-b" in requests[1]] == [True, True]
    assert b"authorization" not in requests_of(Plan((), CHAT.model, 1))[0]
