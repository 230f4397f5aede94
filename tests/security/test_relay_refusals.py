"""What the relay refuses, in OpenAI's shape; and that no answer or log line says too much."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from backend.http.body import SlowBody, read_body
from schemas.ledger import RequestRefused
from schemas.prices import PerCall
from tests.conftest import Server
from tests.site import UPSTREAM_SECRET, Customer, Reply, RunningSite, chat, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY_BYTES_MAX = 200_000
CHAT_PATH = "/v1/chat/completions"
CANARY = "sk-canary0123456789canary0123456789"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(
        server,
        tmp_path_factory.mktemp("site"),
        relay_body_bytes_max=BODY_BYTES_MAX,
        relay_first_byte_timeout_s=0.3,
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


def assert_refused(reply: Reply, status: int, code: str) -> str:
    """In OpenAI's shape, with our request id; gives the sentence."""
    assert (reply.status, reply.json["error"]["code"]) == (status, code), reply.body
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"error"}
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return reply.error["message"]


# 401


async def test_a_missing_or_wrong_key_is_refused(site: RunningSite) -> None:
    anna = await site.customer()
    headers = (
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {anna.key}"},
        {"authorization": anna.key},
        {"authorization": f"Bearer {anna.key[:-1]}"},
        {"authorization": f"Bearer {anna.key}x"},
        {"authorization": f"Bearer {anna.key} {anna.key}"},
        {"authorization": "Bearer sk-" + "a" * 43},
        {"authorization": "Bearer sk-é"},
        {"authorization": "Bearer " + "x" * 7_000},
        {"x-api-key": anna.key},
    )
    for given in headers:
        reply = await site.send("POST", CHAT_PATH, given, json.dumps(chat()).encode())
        sentence = assert_refused(reply, 401, "invalid_api_key")
        assert reply.error["type"] == "invalid_request_error"
        assert anna.key[:12] not in sentence
    models = await site.send("GET", "/v1/models", {})
    assert (models.status, models.error["code"]) == (401, "invalid_api_key")


async def test_the_scheme_of_authorization_is_read_in_any_case(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    for scheme in ("bearer", "BEARER", "Bearer "):
        headers = {"authorization": f"{scheme} {anna.key}"}
        reply = await site.send("POST", CHAT_PATH, headers, json.dumps(chat(model)).encode())
        assert reply.status == 200


async def test_an_expired_key_is_refused(site: RunningSite, upstream: FakeUpstream) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer(expires_us=time.time_ns() // 1000 + 1_000_000)
    assert (await site.ask(anna.key, chat(model))).status == 200
    assert_refused(await refused_within(5, site, anna, model), 401, "invalid_api_key")


async def test_a_revoked_key_stops_within_a_second(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer("100")
    assert (await site.ask(anna.key, chat(model))).status == 200
    await site.base.identity.revoke_key(anna.key_id, "test")
    assert_refused(await refused_within(1, site, anna, model), 401, "invalid_api_key")


async def refused_within(limit_s: float, site: RunningSite, anna: Customer, model: str) -> Reply:
    async with asyncio.timeout(limit_s):
        while True:
            reply = await site.ask(anna.key, chat(model))
            if reply.status != 200:
                return reply
            await asyncio.sleep(0.01)


# 402


async def test_too_few_points_are_refused_and_the_sentence_says_how_many_are_missing(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model, price=PerCall(1_500_000_000))
    poor, none = await site.customer("0.2"), await site.customer(None)
    sentence = assert_refused(await site.ask(poor.key, chat(model)), 402, "insufficient_quota")
    assert "1.3 " in sentence
    reply = await site.ask(none.key, chat(model, stream=True))
    assert "1.5 " in assert_refused(reply, 402, "insufficient_quota")
    assert reply.error["type"] == "insufficient_quota"
    refused = (await site.events(poor))[-1]
    assert isinstance(refused, RequestRefused)
    assert refused.missing_upt == 1_300_000
    assert upstream.seen == []


# 404


async def test_a_model_that_cannot_be_called_is_not_found_and_not_listed(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    unpriced, unserved, served = site.model(), site.model(), site.model()
    await site.serves(upstream.url, unpriced, price=None)
    await site.base.catalog.set_price(unserved, PerCall(1))
    await site.serves(upstream.url, served)
    anna, limited = await site.customer(), await site.customer(models=("something-else",))
    for model in (unpriced, unserved, "nobody-knows-it", "a" * 256):
        assert_refused(await site.ask(anna.key, chat(model)), 404, "model_not_found")
    assert_refused(await site.ask(limited.key, chat(served)), 404, "model_not_found")
    listed = [entry["id"] for entry in (await site.get("/v1/models", anna.key)).json["data"]]
    assert served in listed
    assert {unpriced, unserved}.isdisjoint(listed)
    assert (await site.get("/v1/models", limited.key)).json["data"] == []
    assert upstream.seen == []


async def test_an_unknown_address_under_v1_is_refused_in_the_same_shape(site: RunningSite) -> None:
    anna = await site.customer()
    for method, path in (("GET", CHAT_PATH), ("POST", "/v1/nothing"), ("POST", "/v1/")):
        reply = await site.send(method, path, {"authorization": f"Bearer {anna.key}"}, b"{}")
        assert reply.status in (404, 405)
        assert reply.error["type"] == "invalid_request_error"


# 400


def _bad_bodies() -> Iterator[bytes]:
    good = b'"messages": [{"role": "user", "content": "Hi"}]'
    yield b""
    yield b"nonsense"
    yield b'{"model": "m", '
    yield b"[]"
    yield b"null"
    yield b'"model"'
    yield b"{" + good + b"}"
    yield b'{"model": "m"}'
    yield b'{"model": 7, ' + good + b"}"
    yield b'{"model": "", ' + good + b"}"
    yield b'{"model": null, ' + good + b"}"
    yield b'{"model": "m\\u0000x", ' + good + b"}"
    yield b'{"model": "\\ud800", ' + good + b"}"
    yield b'{"model": "' + b"m" * 300 + b'", ' + good + b"}"
    for messages in (b"[]", b"{}", b'"Hi"', b"[1]", b"null", b'[{"role": "user"}, "Hi"]'):
        yield b'{"model": "m", "messages": ' + messages + b"}"
    for fault in (
        b'"stream": "yes"',
        b'"stream": 1',
        b'"n": 0',
        b'"n": "2"',
        b'"n": 1000',
        b'"n": 1.5',
        b'"max_tokens": -1',
        b'"max_tokens": 0',
        b'"max_completion_tokens": "many"',
        b'"max_tokens": 1e3000',
        b'"stream_options": []',
        b'"stream_options": {"include_usage": "yes"}',
        b'"x": nonsense',
        b'"x": 01',
    ):
        yield b'{"model": "m", ' + good + b", " + fault + b"}"
    for depth in (5_000, 20_000):
        nested = b"[" * depth + b"]" * depth
        yield nested
        yield b'{"a":' * depth + b"1" + b"}" * depth
        yield b'{"model": "m", "x": ' + nested + b", " + good + b"}"
        yield b'{"model": "m", "messages": ' + nested + b"}"
        yield b'{"model": "m", "messages": [{"role": "user", "content": ' + nested + b"}]}"
    yield b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}'
    yield b'{"model": "m", "messages": [{"role": "user", "content": "a\x00b"}]}'
    yield b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}'


async def test_a_bad_body_is_refused_before_anything_is_held(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    wrong: list[tuple[int, bytes]] = []
    for bad in _bad_bodies():
        body = bad.replace(b'"model": "m"', b'"model": "%s"' % model.encode())
        reply = await site.ask(anna.key, body)
        if reply.status != 400:
            wrong.append((reply.status, bad[:120]))
            continue
        assert reply.error["type"] == "invalid_request_error"
        assert reply.error["message"].endswith(".")
    assert wrong == []
    assert len(await site.events(anna)) == 2, "opened and granted, nothing else"
    assert upstream.seen == []


async def test_an_escaped_nul_in_a_text_is_the_providers_matter_and_goes_on(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    """It is valid JSON and we store no text of a relay call."""
    model = site.model()
    await site.serves(upstream.url, model)
    upstream.play(Script(usage=None))
    messages = b'[{"role": "user", "content": "a\\u0000b"}]'
    body = b'{"model": "%s", "messages": %s}' % (model.encode(), messages)
    assert (await site.ask((await site.customer()).key, body)).status == 200
    assert messages in upstream.seen[0].body


# 413 and framing


async def test_a_body_that_is_too_large_is_refused_whether_declared_or_streamed(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    large = json.dumps(chat(model, x="y" * BODY_BYTES_MAX)).encode()
    assert_refused(await site.ask(anna.key, large), 413, "request_too_large")

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(large), 50_000):
            yield large[at : at + 50_000]

    headers = {"authorization": f"Bearer {anna.key}"}
    reply = await site.send("POST", CHAT_PATH, headers, pieces())
    assert_refused(reply, 413, "request_too_large")
    declared = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer %s\r\n"
        b"content-length: 99999999999\r\n\r\n" % anna.key.encode()
    )
    assert (await raw(site, declared)).startswith(b"HTTP/1.1 413 ")
    fits = json.dumps(chat(model, x="y" * (BODY_BYTES_MAX - 200))).encode()
    assert (await site.ask(anna.key, fits)).status in (200, 402)


async def test_a_body_that_trickles_in_is_given_up() -> None:
    pieces = iter((b"{", b'"model"'))

    async def receive() -> Any:
        piece = next(pieces, None)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": True}

    with pytest.raises(SlowBody) as given_up:
        await read_body([(b"content-length", b"100")], receive, 1_000, timeout_s=0.05)
    assert given_up.value.status == 408


async def test_a_request_with_two_lengths_is_refused(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer %s\r\n"
        % anna.key.encode()
    )
    body = json.dumps(chat(model)).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    length = b"content-length: %d\r\n" % len(body)
    coding = b"transfer-encoding: chunked\r\n"
    for framing in (length + coding, coding + length, length + b"content-length: 5\r\n"):
        answer = await raw(site, head + framing + b"\r\n" + chunked)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert answer.count(b"HTTP/1.1") == 1
    compressed = await site.ask(anna.key, body, content_encoding="gzip")
    assert_refused(compressed, 415, "unsupported_content_encoding")
    assert upstream.seen == []


async def raw(site: RunningSite, request: bytes) -> bytes:
    """What comes back over a bare socket, up to the end of the head or the connection's."""
    host, _, port = site.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()


# Nothing that should not be known


async def test_no_answer_and_no_log_line_holds_a_secret_an_address_or_a_stack(
    site: RunningSite, upstream: FakeUpstream, logged: io.StringIO
) -> None:
    anna = await site.customer("1000")
    leak = f"Invalid key {CANARY} at {upstream.url} for Bearer {CANARY} (org-canary123456789)"
    error = {"message": leak, "type": "invalid_request_error", "code": None}
    scripts = (
        *(Script(status=status, error=error) for status in (400, 401, 403, 404, 422, 429, 500)),
        Script(error_frame_after=0, error=error),
        Script(error_frame_after=1, error=error),
        Script(cut_before_head=True),
        Script(cut_after=1),
        Script(first_byte_delay_s=2.0),
    )
    replies: list[Reply] = []
    for script in scripts:
        for streamed in (True, False):
            model = site.model()
            await site.serves(upstream.url, model, secret=CANARY)
            upstream.by_model[model] = script
            replies.append(await site.ask(anna.key, chat(model, stream=streamed)))
    model = site.model()
    await site.serves("http://127.0.0.1:1/v1", model, secret=CANARY)
    replies.append(await site.ask(anna.key, chat(model)))
    port = upstream.url.removeprefix("http://127.0.0.1:").partition("/")[0]
    said = "\n".join(f"{reply.headers} {reply.body.decode()}" for reply in replies)
    assert any(reply.status == 400 for reply in replies)
    for text in (said, logged.getvalue()):
        for private in (CANARY, "canary0123", f":{port}", "127.0.0.1", "org-canary", anna.key):
            assert private not in text, private
        for stack in ("Traceback", 'File "', ".py", "aiohttp", "Error:"):
            assert stack not in text, stack
    assert UPSTREAM_SECRET not in said
    assert "attempt failed" in logged.getvalue()
