"""The transport against a provider on a real socket: bytes, deadlines, cuts, cancels, reuse."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from backend.kit.outbound import (
    AnswerTooLarge,
    ConnectFailed,
    Deadlines,
    FirstByteTimeout,
    IdleTimeout,
    UpstreamCut,
    UpstreamRequest,
)
from backend.kit.outbound_http import AioHttpTransport, HttpAnswer
from schemas.chat import parse_chat_request
from tests.upstream import FakeUpstream, Script
from workers.providers.openai import ChannelTarget, build_chat
from workers.providers.openai_answer import ChatStream, FrameKind, parse_answer

DEADLINES = Deadlines(connect_s=2.0, first_byte_s=2.0, idle_s=2.0)
LIMIT_BYTES = 1_000_000


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


@pytest.fixture
async def transport() -> AsyncIterator[AioHttpTransport]:
    made = AioHttpTransport(limit=50)
    yield made
    await made.close()


def call(url: str, *, stream: bool = False, request_id: str = "req-1") -> UpstreamRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    request = parse_chat_request(json.dumps(body).encode())
    target = ChannelTarget(url, "sk-test", "m")
    return build_chat(target, request, request_id=request_id, output_limit=None)


async def received(answer: HttpAnswer) -> tuple[bytes, UpstreamCut | None]:
    """All that came, and the cut that ended it."""
    pieces: list[bytes] = []
    try:
        async for chunk in answer.chunks():
            pieces.append(chunk)  # noqa: PERF401  (what came before the cut must survive it)
    except UpstreamCut as cut:
        return b"".join(pieces), cut
    return b"".join(pieces), None


async def test_an_answer_comes_whole_and_the_request_went_out_as_built(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    request = call(upstream.url)
    answer = await transport.open(request, DEADLINES)
    read = parse_answer(await answer.read(LIMIT_BYTES))
    await answer.release()
    assert (answer.status, read.text) == (200, "Hello!")
    assert answer.headers["Content-Type"] == "application/json"
    seen = upstream.seen[0]
    assert seen.body == request.body
    sent = dict(request.headers) | {"content-length": str(len(request.body))}
    assert {name: value for name, value in seen.headers.items() if name != "host"} == sent
    assert upstream.reported() == {"req-1": seen.reported_usage}


async def test_a_stream_is_read_frame_by_frame(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(gated=True, comment_first=True))
    answer = await transport.open(call(upstream.url, stream=True), DEADLINES)
    seen = await upstream.arrived()
    parser, texts = ChatStream(), []
    async for chunk in answer.chunks():
        for frame in parser.feed(chunk):
            texts.append(frame.delta.content)
            if frame.kind in (FrameKind.CONTENT, FrameKind.COMMENT):
                seen.allow()
    assert parser.done
    assert "".join(texts) == "Hello!"


async def test_a_kept_connection_serves_the_next_call(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    for streamed in (False, True, True, False):
        answer = await transport.open(call(upstream.url, stream=streamed), DEADLINES)
        async for chunk in answer.chunks():
            if b"[DONE]" in chunk:
                break
        await answer.release()
    connector = transport._session.connector
    assert connector is not None
    assert [len(kept) for kept in connector._conns.values()] == [1]


async def test_a_body_whose_end_is_near_is_drained_so_that_its_connection_lives(
    transport: AioHttpTransport,
) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    releasing = asyncio.Event()
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + b"e\r\ndata: [DONE]\n\n\r\n")
            await releasing.wait()
            writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    for _ in range(2):
        releasing.clear()
        answer = await transport.open(UpstreamRequest("POST", url, (("x", "y"),)), DEADLINES)
        assert await anext(aiter(answer.chunks())) == b"data: [DONE]\n\n"
        release = asyncio.ensure_future(answer.release())
        await asyncio.sleep(0)
        releasing.set()
        await release
    assert len(connections) == 1
    server.close()
    await server.wait_closed()


async def test_no_listener_is_a_failed_connect(transport: AioHttpTransport) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ConnectFailed):
            await transport.open(call(url), DEADLINES)


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/v1", "http://[::1/v1", "http:///v1"])
async def test_an_address_that_is_none_is_a_failed_connect(
    url: str, transport: AioHttpTransport
) -> None:
    with pytest.raises(ConnectFailed):
        await transport.open(call(url), DEADLINES)


async def test_a_secret_with_a_line_break_sends_nothing(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    request = UpstreamRequest("POST", upstream.url, (("authorization", "a\r\nx: y"),), b"{}")
    with pytest.raises(ConnectFailed) as caught:
        await transport.open(request, DEADLINES)
    assert "x: y" not in str(caught.value)
    assert upstream.seen == []


async def test_a_slow_head_runs_into_its_deadline_and_the_provider_notices(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(first_byte_delay_s=30.0))
    deadlines = Deadlines(connect_s=2.0, first_byte_s=0.1, idle_s=2.0)
    with pytest.raises(FirstByteTimeout):
        await transport.open(call(upstream.url), deadlines)
    await upstream.seen[0].until("client_left")


async def test_a_silent_body_runs_into_its_own_deadline(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(gated=True))
    deadlines = Deadlines(connect_s=2.0, first_byte_s=30.0, idle_s=0.1)
    answer = await transport.open(call(upstream.url, stream=True), deadlines)
    (await upstream.arrived()).allow()
    chunks = aiter(answer.chunks())
    assert b"Hel" in await anext(chunks)
    with pytest.raises(IdleTimeout):
        await anext(chunks)
    answer.cancel()
    await upstream.seen[0].until("client_left")


async def test_the_head_deadline_does_not_hold_for_the_body(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(chunk_delay_s=0.25))
    deadlines = Deadlines(connect_s=2.0, first_byte_s=0.15, idle_s=5.0)
    answer = await transport.open(call(upstream.url, stream=True), deadlines)
    assert b"[DONE]" in await answer.read(LIMIT_BYTES)


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
async def test_every_byte_before_a_cut_is_given_and_then_the_cut(
    upstream: FakeUpstream, transport: AioHttpTransport, chunks: int
) -> None:
    upstream.play(Script(cut_after=chunks))
    answer = await transport.open(call(upstream.url, stream=True), DEADLINES)
    await upstream.seen[0].until(f"chunks:{chunks}")
    parser = ChatStream()
    body, cut = await received(answer)
    frames = parser.feed(body)
    assert cut is not None
    assert cut.answered
    assert [frame.delta.content for frame in frames] == ["Hel", "lo", "!"][:chunks]
    assert not parser.complete


async def test_a_cut_that_waits_with_its_bytes_in_the_buffer_loses_none_of_them(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(texts=("a", "b", "c", "d"), cut_after=4))
    answer = await transport.open(call(upstream.url, stream=True), DEADLINES)
    await upstream.seen[0].until("chunks:4")
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer._content.wait_eof()
    body, cut = await received(answer)
    assert cut is not None
    assert [text in body for text in (b'"a"', b'"b"', b'"c"', b'"d"')] == [True] * 4


async def test_half_a_frame_and_half_a_body_are_cuts(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(half_frame_after=1), Script(cut_after=0))
    answer = await transport.open(call(upstream.url, stream=True), DEADLINES)
    parser = ChatStream()
    body, cut = await received(answer)
    assert cut is not None
    frames = parser.feed(body) + parser.finish()
    assert [frame.delta.content for frame in frames] == ["Hel"]
    whole = await transport.open(call(upstream.url), DEADLINES)
    with pytest.raises(UpstreamCut):
        await whole.read(LIMIT_BYTES)


async def test_a_connection_lost_before_the_head_was_sent_is_told_from_one_after(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(cut_before_head=True))
    with pytest.raises(UpstreamCut) as caught:
        await transport.open(call(upstream.url), DEADLINES)
    assert not caught.value.answered
    assert len(upstream.seen) == 1


async def test_a_stale_kept_connection_is_replaced_without_anybody_noticing(
    transport: AioHttpTransport,
) -> None:
    """The server answers one request per connection and closes it on the second."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    served: list[bytes] = []
    dropped: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(head)
        dropped.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    for _ in range(2):
        request = UpstreamRequest("POST", url, (("x-request-id", "r"),))
        answer = await transport.open(request, DEADLINES)
        assert await answer.read(10) == b"{}"
        await answer.release()
    assert (len(served), len(dropped)) == (2, 1)
    server.close()
    await server.wait_closed()


async def test_a_cancelled_call_is_noticed_by_the_provider_at_once(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(gated=True))
    answer = await transport.open(call(upstream.url, stream=True), DEADLINES)
    seen = await upstream.arrived()
    answer.cancel()
    await seen.until("client_left", timeout_s=1.0)
    with pytest.raises(UpstreamCut):
        await anext(aiter(answer.chunks()))


async def test_releasing_an_unfinished_stream_hangs_up(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(gated=True))
    answer = await transport.open(call(upstream.url, stream=True), DEADLINES)
    await answer.release()
    await upstream.seen[0].until("client_left", timeout_s=1.0)


async def test_a_body_over_the_limit_is_not_held(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(texts=("x" * 50_000,)))
    answer = await transport.open(call(upstream.url), DEADLINES)
    with pytest.raises(AnswerTooLarge):
        await answer.read(10_000)


async def test_error_statuses_are_answers_and_redirects_are_not_followed(
    upstream: FakeUpstream, transport: AioHttpTransport
) -> None:
    upstream.play(Script(fail_first=2, fail_status=429, retry_after="7"))
    for status in (429, 429, 200):
        answer = await transport.open(call(upstream.url), DEADLINES)
        assert answer.status == status
        assert answer.headers.get("Retry-After") == ("7" if status == 429 else None)
        await answer.read(LIMIT_BYTES)
    upstream.play(Script(status=307, error={"message": "elsewhere"}))
    assert (await transport.open(call(upstream.url), DEADLINES)).status == 307


async def test_a_full_pool_is_a_connect_deadline_not_a_hang(upstream: FakeUpstream) -> None:
    transport = AioHttpTransport(limit=1)
    upstream.play(Script(gated=True))
    first = await transport.open(call(upstream.url, stream=True), DEADLINES)
    with pytest.raises(ConnectFailed):
        await transport.open(call(upstream.url), Deadlines(0.1, 2.0, 2.0))
    first.cancel()
    answer = await transport.open(call(upstream.url), DEADLINES)
    assert answer.status == 200
    await answer.release()
    await transport.close()
