"""What a connection may cost before there is a request: time, bytes, descriptors; and framing."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack

import pytest

from tests.security.http_ground import echoing, wire

HEAD_S = 0.3
GET = b"GET /a HTTP/1.1\r\nhost: here\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nhost: here\r\n"


async def refused(url: str, request: bytes) -> tuple[int, str, str, str, bytes]:
    """What a refusal says, and what comes after it."""
    async with wire(url) as line:
        await line.send(request)
        status, headers, body = await line.answer()
        code = json.loads(body)["code"]
        return status, code, headers["content-type"], headers["connection"], await line.rest()


async def all_refused(url: str, cases: dict[str, bytes], status: int, code: str) -> None:
    """With a problem, and the end of the connection after it."""
    found = await asyncio.gather(
        *(refused(url, request) for request in cases.values()), return_exceptions=True
    )
    expected = (status, code, "application/problem+json", "close", b"")
    wrong = {name: said for name, said in zip(cases, found, strict=True) if said != expected}
    assert wrong == {}


@pytest.mark.parametrize("piece", [GET[:-1], b"G", GET[:20], b"\r\n", GET + GET[:9]])
async def test_a_head_that_stops_in_the_middle_is_closed_within_its_deadline(piece: bytes) -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, _), wire(url) as line:
        await line.send(piece)
        began_s = time.monotonic()
        said = await line.rest()
        assert HEAD_S * 0.8 < time.monotonic() - began_s < HEAD_S + 3
        assert piece == b"\r\n" or b"HTTP/1.1 408 " in said


async def test_a_head_that_trickles_in_gets_no_more_time_than_one_that_stops() -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, echo), wire(url) as line:
        began_s = time.monotonic()

        async def trickle() -> None:
            await line.send(GET[:-2])
            while True:
                await asyncio.sleep(HEAD_S / 10)
                await line.send(b"x: y\r\n")

        sending = asyncio.create_task(trickle())
        assert (await line.answer())[0] == 408
        sending.cancel()
        assert time.monotonic() - began_s < HEAD_S + 3
        assert echo.seen == []


async def test_a_connection_that_never_says_anything_is_closed_without_a_word() -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, _), wire(url) as line:
        assert await line.rest() == b""


async def test_a_client_that_keeps_its_connection_is_not_bothered_between_requests() -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, echo), wire(url) as line:
        for _ in range(2):
            await line.send(GET)
            assert (await line.answer())[0] == 200
            assert await line.is_open(for_s=HEAD_S * 2)
        assert len(echo.seen) == 2


async def test_a_request_whose_body_takes_longer_than_its_head_may_is_answered() -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, echo), wire(url) as line:
        await line.send(POST + b"content-length: 4\r\n\r\nab")
        assert await line.is_open(for_s=HEAD_S * 2)
        await line.send(b"cd")
        assert (await line.answer())[0] == 200
        assert echo.seen[0][2] == b"abcd"


async def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for_long() -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, _), wire(url) as line:
        await line.send(b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n")
        assert (await line.answer())[0] == 200
        closing = asyncio.create_task(line.rest())
        async with asyncio.timeout(HEAD_S + 5):
            while not closing.done():
                await line.send(b"x")
                await asyncio.sleep(HEAD_S / 10)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with echoing(header_timeout_s=HEAD_S) as (url, echo), wire(url) as line:
        await line.send(GET + GET.replace(b"/a", b"/b") + GET.replace(b"/a", b"/c"))
        for _ in range(3):
            assert (await line.answer())[0] == 200
        assert [path for path, _, _ in echo.seen] == ["/a", "/b", "/c"]


LARGE = {
    "one field": GET[:-2] + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
    "a field without an end": GET[:-2] + b"x: " + b"y" * 70_000,
    "many fields": GET[:-2] + b"x: y\r\n" * 12_000 + b"\r\n",
    "a long address": GET.replace(b"/a", b"/" + b"a" * 70_000),
    "a chunk's extension": POST + b"transfer-encoding: chunked\r\n\r\n1;" + b"e" * 70_000,
    "a trailer": POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"e" * 70_000,
}


async def test_a_head_of_70_kb_is_refused() -> None:
    async with echoing() as (url, echo):
        await all_refused(url, LARGE, 431, "headers_too_large")
        assert echo.seen == []


async def test_a_head_of_a_usual_size_is_taken() -> None:
    async with echoing() as (url, echo), wire(url) as line:
        await line.send(GET[:-2] + b"cookie: " + b"c" * 30_000 + b"\r\n\r\n")
        assert (await line.answer())[0] == 200
        assert len(echo.seen[0][1]["cookie"]) == 30_000


CHUNKED = b"transfer-encoding: chunked\r\n"
LENGTH = b"content-length: 5\r\n"
CHUNKS = b"\r\n0\r\n\r\n"
FRAMINGS = {
    "length and encoding": POST + LENGTH + CHUNKED + CHUNKS,
    "encoding and length": POST + CHUNKED + LENGTH + CHUNKS,
    "two lengths": POST + LENGTH + b"content-length: 6\r\n\r\nabcdef",
    "a length twice": POST + LENGTH + LENGTH + b"\r\nabcde",
    "a negative length": POST + b"content-length: -5\r\n\r\n",
    "a signed length": POST + b"content-length: +5\r\n\r\nabcde",
    "a list of lengths": POST + b"content-length: 5, 5\r\n\r\nabcde",
    "an unknown encoding": POST + b"transfer-encoding: xchunked\r\n" + CHUNKS,
    "an encoding after chunked": POST + b"transfer-encoding: chunked, identity\r\n" + CHUNKS,
    "two encodings": POST + CHUNKED + b"transfer-encoding: identity\r\n" + CHUNKS,
    "an encoding in HTTP/1.0": POST.replace(b"1.1", b"1.0") + CHUNKED + CHUNKS,
    "a blank before the colon": POST + b"content-length : 5\r\n\r\nabcde",
    "a folded line": POST + b" folded: yes\r\n\r\n",
    "bare line feeds": GET.replace(b"\r\n", b"\n"),
    "one bare line feed": b"GET /a HTTP/1.1\r\nhost: here\nx: y\r\n\r\n",
    "a bare carriage return": b"GET /a HTTP/1.1\r\nhost: here\rx: y\r\n\r\n",
    "a NUL in a header": b"GET /a HTTP/1.1\r\nhost: here\r\nx: a\x00b\r\n\r\n",
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\nhost: here\r\nhost: there\r\n\r\n",
    "an address that is not ASCII": b"GET /\xff HTTP/1.1\r\nhost: here\r\n\r\n",
    "a tunnel": b"CONNECT other:80 HTTP/1.1\r\nhost: here\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no HTTP": b"EHLO mail.example\r\n\r\n",
}


async def test_what_two_readers_could_frame_differently_is_refused_and_closed() -> None:
    smuggled = GET.replace(b"/a", b"/smuggled")
    async with echoing() as (url, echo):
        cases = {name: request + smuggled for name, request in FRAMINGS.items()}
        await all_refused(url, cases, 400, "invalid_request")
        assert echo.seen == []


async def test_fields_behind_a_body_are_no_headers() -> None:
    async with echoing() as (url, echo), wire(url) as line:
        trailer = b"0\r\nauthorization: Bearer x\r\nx-forwarded-for: 10.0.0.1\r\n\r\n"
        await line.send(POST + CHUNKED + b"\r\n", b"2\r\nhi\r\n", trailer)
        assert (await line.answer())[0] == 200
        ((_, headers, body),) = echo.seen
        assert (sorted(headers), body) == (["host", "transfer-encoding"], b"hi")


async def test_the_longest_waiting_connection_makes_room_for_a_new_one() -> None:
    async with (
        echoing(waiting_connections_max=3) as (url, _),
        AsyncExitStack() as stack,
    ):
        busy = await stack.enter_async_context(wire(url))
        await busy.send(POST + LENGTH + b"\r\nab")
        quiet = [await stack.enter_async_context(wire(url)) for _ in range(20)]
        closed = asyncio.gather(*(line.rest() for line in quiet[:17]))
        assert await closed == [b""] * 17, "the oldest ones are closed"
        await quiet[-1].send(GET)
        assert (await quiet[-1].answer())[0] == 200
        await busy.send(b"cde")
        assert (await busy.answer())[0] == 200, "one whose request is under way stays"


async def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.app.http_protocol.WRITE_STALL_S", 0.3)
    async with echoing() as (url, _), wire(url) as line:
        line.stop_reading()
        await line.send(GET.replace(b"/a", b"/large"))
        await asyncio.sleep(1.0)  # what is awaited is the time itself
        assert len(await line.rest()) < 20_000_000
