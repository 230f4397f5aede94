"""Bodies and addresses that nobody sends by accident: each is refused, and nothing recorded."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.conftest import Server
from tests.integration.identity_site import SECRET_TEXT
from tests.security.api_ground import Ground, Route, ground_on, routes_of
from tests.security.examples import example_of
from tests.security.http_ground import wire
from tests.site import UPSTREAM_SECRET, Reply, bearer
from tests.valkey import ValkeyServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
INSIDES = (
    "Traceback", 'File "', ".py", "SELECT", "INSERT", "psycopg", "litestar", "msgspec",
    "uvicorn", "/work", "site-packages", "postgresql://", SECRET_TEXT, UPSTREAM_SECRET,
)  # fmt: skip
NOT_AMOUNTS: tuple[Any, ...] = (
    "-1", "0", "-0", "+1", "1e3", "1E400", "NaN", "nan", "Infinity", "-inf", "0x10", "1_000",
    "1,5", "1.0000001", "", " ", " 1", "1 ", "１", "٣", "½", "9" * 40, "9" * 5_000,
    "1" + "0" * 19, "9223372036854775808", "9223372036854.775808", "1\n", "1\u0000", "one",
    1, -1, 0, 1.5, 1e300, 2**62, True, False, None, [], ["1"], {}, {"points": "1"},
)  # fmt: skip
ANYTHING: tuple[Any, ...] = (
    -1, 0, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 1.5, 1e308, True, None, [], {}, [[]], "",
    "\u0000", "\ud800", "\u202e", "x" * 60_000, "'; DROP TABLE event_log; --", "../../etc/passwd",
    "${jndi:ldap://x}", "{{7*7}}", "%s%n", "0", "-1", "=1+1",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(
    server: Server, shared_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ground]:
    folder = tmp_path_factory.mktemp("site")
    async with ground_on(server, shared_valkey, folder, attempts_code_guesses=100_000) as ground:
        yield ground


def with_bodies(ground: Ground) -> list[Route]:
    found = [route for route in routes_of(ground.site) if route.method in ("POST", "PUT", "PATCH")]
    assert len(found) >= 11
    return found


async def post(ground: Ground, route: Route, data: bytes, **headers: str) -> Reply:
    """With a key that opens everything: what is refused is the body."""
    path = route.path
    for name, value in example_of(ground, route).path.items():
        path = path.replace("{" + name + "}", str(value))
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {**bearer(ground.admin.key), **more}
    return await ground.site.send(route.method, path, sent, data)


def faults(route: Route, reply: Reply, what: str) -> list[str]:
    """What is wrong with a refusal: it must be one, in its clients' shape, and say no insides."""
    said = f"{route.name} {what}: {reply.status} {reply.body[:200]!r}"
    if not 400 <= reply.status < 500:
        return [said]
    is_ours = route.path.startswith("/api/")
    shape = "application/problem+json" if is_ours else "application/json"
    problem = reply.json if is_ours else reply.json["error"]
    sentence = problem["detail" if is_ours else "message"]
    is_clear = reply.headers["content-type"] == shape and problem["code"] and sentence
    is_named = bool(reply.headers.get("x-request-id")) and (
        not is_ours or problem["request_id"] == reply.headers["x-request-id"]
    )
    leaks = [inside for inside in INSIDES if inside in reply.body.decode()]
    return [said] if not is_clear or not is_named or leaks or len(reply.body) > 2_000 else []


# Fields


def with_a_field_more(value: Any) -> Iterator[Any]:
    """The value with an unknown field in each of its objects in turn."""
    if isinstance(value, dict):
        yield {**value, "is_administrator": True}
        for name, inner in value.items():
            yield from ({**value, name: other} for other in with_a_field_more(inner))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for other in with_a_field_more(inner):
                yield [*value[:at], other, *value[at + 1 :]]


async def test_no_body_has_a_field_that_its_route_does_not_know(ground: Ground) -> None:
    described = (await ground.site.get("/api/openapi.json")).json["paths"]
    asking = [route for route in with_bodies(ground) if route.path != CHAT]
    assert {route.name for route in asking} == {
        f"{method.upper()} {path}"
        for path, methods in described.items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }
    before, wrong, tried = await ground.event_count(), [], 0
    for route in asking:
        for body in with_a_field_more(example_of(ground, route).body):
            reply = await post(ground, route, json.dumps(body).encode())
            wrong += faults(route, reply, f"with {body}")
            wrong += [f"{route.name} {reply.status}"] * (reply.status != 400)
            tried += 1
    assert not wrong, "\n".join(wrong)
    assert tried > len(asking)
    assert await ground.event_count() == before


async def test_what_is_no_amount_of_points_moves_none(ground: Ground) -> None:
    before, wrong, tried = await ground.event_count(), [], 0
    for route in with_bodies(ground):
        body = example_of(ground, route).body
        if "points" not in body:
            continue
        for amount in NOT_AMOUNTS:
            reply = await post(ground, route, json.dumps({**body, "points": amount}).encode())
            wrong += faults(route, reply, f"with {str(amount)[:40]!r}")
            tried += 1
    assert not wrong, "\n".join(wrong)
    assert tried >= 2 * len(NOT_AMOUNTS)
    assert await ground.event_count() == before


async def test_a_grant_to_nobody_leaves_nothing_behind(ground: Ground) -> None:
    (grants,) = (route for route in with_bodies(ground) if route.path.endswith("/grants"))
    before = await ground.count("SELECT count(*) FROM data_keys")
    for person in (0, 987_654_321, -1):
        body = json.dumps({"person": person, "points": "1", "reason": "because"}).encode()
        reply = await post(ground, grants, body)
        assert (reply.status, reply.json["code"]) == (404, "not_found")
    assert await ground.count("SELECT count(*) FROM data_keys") == before


def replaced(value: Any) -> Iterator[Any]:
    """The value with each of its leaves replaced by anything."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from ({**value, name: other} for other in replaced(inner))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in replaced(inner))
    else:
        yield from ANYTHING


async def test_no_value_of_any_field_breaks_anything(ground: Ground) -> None:
    """Some are allowed, such as a reason of any text; none is an error of ours."""
    wrong: list[str] = []
    for route in with_bodies(ground):
        bodies = list(replaced(example_of(ground, route).body))
        for at in range(0, len(bodies), 20):
            batch = bodies[at : at + 20]
            replies = await asyncio.gather(
                *(post(ground, route, json.dumps(body).encode()) for body in batch)
            )
            for body, reply in zip(batch, replies, strict=True):
                if reply.status >= 400:
                    wrong += faults(route, reply, f"with {str(body)[:120]}")
    assert not wrong, "\n".join(wrong)


async def test_no_value_of_a_query_or_a_path_breaks_anything(ground: Ground) -> None:
    described = (await ground.site.get("/api/openapi.json")).json["paths"]
    texts = ("", "-1", "9" * 30, "%00", "%ff", "%ED%A0%80", "NaN", "'", "1e9")
    wrong: list[str] = []
    tried = 0
    for route in routes_of(ground.site):
        operation = described.get(route.path, {}).get(route.method.lower())
        if operation is None or route.method not in ("GET", "DELETE"):
            continue
        example = example_of(ground, route)
        for parameter in operation.get("parameters", ()):
            name, is_query = parameter["name"], parameter["in"] == "query"
            for text in texts:
                path = {**example.path} if is_query else {**example.path, name: text or "%20"}
                kept = {one: value for one, value in example.query.items() if one != name}
                asked = msgspec.structs.replace(example, path=path, query=kept)
                reply = await ground.call(
                    route, asked, bearer(ground.admin.key), f"{name}={text}" if is_query else ""
                )
                tried += 1
                if reply.status >= 400:
                    wrong += faults(route, reply, f"{name}={text}")
    assert not wrong, "\n".join(wrong)
    assert tried > 800


async def test_a_parameter_that_comes_twice_is_refused(ground: Ground) -> None:
    for query in ("level=1&months=1&level=2", "level=1&months=1&months=1"):
        reply = await ground.site.get(f"/api/wallet/quote?{query}", ground.bert.key)
        assert (reply.status, reply.json["code"]) == (400, "invalid_request")
        assert "more than once" in reply.json["detail"]


# Whole bodies


def twice(body: Any) -> bytes:
    """The last field of the body a second time, with the value that was meant."""
    name, value = list(body.items())[-1] if body else ("since_seal", False)
    member = f"{json.dumps(name)}: {json.dumps(value)}"
    rest = json.dumps(body)[1:-1] or member
    return f"{{{rest}, {member}}}".encode()


def hostile(body: Any) -> dict[str, tuple[bytes, dict[str, str], int]]:
    """(body, headers, status) by what is wrong."""
    good, inside = json.dumps(body).encode(), json.dumps(body)[1:-1] or '"since_seal": false'
    deep = b"[" * 5_000 + b"]" * 5_000
    objects = b'{"a":' * 5_000 + b"1" + b"}" * 5_000
    return {
        "a name twice": (twice(body), {}, 400),

        "deep lists": (deep, {}, 400),
        "deep objects": (objects, {}, 400),
        "deep lists in a field": (b'{%s, "x": %s}' % (inside.encode(), deep), {}, 400),
        "900 levels": (b'{"x": ' + b"[" * 900 + b"]" * 900 + b"}", {}, 400),
        "a wide list": (b'{"x": [' + b"1," * 30_000 + b"1]}", {}, 400),
        "many fields": (
            b"{" + b",".join(b'"f%d":1' % n for n in range(5_000)) + b"}", {}, 400,
        ),
        "a long number": (b'{"x": ' + b"9" * 60_000 + b"}", {}, 400),
        "a 1 MB number": (b'{"x": ' + b"9" * 1_000_000 + b"}", {}, 413),
        "a large body": (b" " * 70_000 + good, {}, 413),
        "NaN": (b'{%s, "x": NaN}' % inside.encode(), {}, 400),
        "infinity": (b'{%s, "x": -Infinity}' % inside.encode(), {}, 400),
        "an overflow": (b'{%s, "x": 1e999}' % inside.encode(), {}, 400),
        "beyond 64 bits": (b'{%s, "x": 9223372036854775808}' % inside.encode(), {}, 400),
        "a NUL": (b'{%s, "x": "a\\u0000b"}' % inside.encode(), {}, 400),
        "a NUL in a name": (b'{%s, "a\\u0000b": 1}' % inside.encode(), {}, 400),
        "half a surrogate pair": (b'{%s, "x": "\\ud800"}' % inside.encode(), {}, 400),
        "a raw NUL": (good.replace(b"{", b"{\x00", 1), {}, 400),
        "no UTF-8": (b'{%s, "x": "\xff\xfe"}' % inside.encode(), {}, 400),
        "UTF-16": (json.dumps(body).encode("utf-16"), {}, 400),
        "a byte order mark": (b"\xef\xbb\xbf" + good, {}, 400),
        "something behind it": (good + good, {}, 400),
        "half of it": (good[:-1], {}, 400),
        "a list": (b"[" + good + b"]", {}, 400),
        "null": (b"null", {}, 400),
        "a text": (b'"text"', {}, 400),
        "no JSON": (b"code=1", {}, 400),
        "a comment": (good + b" // more", {}, 400),
        "a comma at its end": (good[:-1] + b",}", {}, 400),
        "nothing": (b"", {}, 400),
        "gzip": (gzip.compress(good), {"content_encoding": "gzip"}, 415),
        "a bomb": (gzip.compress(b" " * 10_000_000), {"content_encoding": "gzip"}, 415),
        "plain text": (good, {"content_type": "text/plain"}, 415),
        "a form": (good, {"content_type": "application/x-www-form-urlencoded"}, 415),
        "many parts": (good, {"content_type": "multipart/form-data; boundary=b"}, 415),
        "msgpack": (msgspec.msgpack.encode(body), {"content_type": "application/msgpack"}, 415),
        "XML": (b"<a/>", {"content_type": "application/xml"}, 415),
    }  # fmt: skip


async def test_a_body_that_two_parsers_read_differently_is_refused_by_every_route(
    ground: Ground,
) -> None:
    before, wrong = await ground.event_count(), []
    for route in with_bodies(ground):
        if route.path == CHAT:
            continue
        for what, (data, headers, status) in hostile(example_of(ground, route).body).items():
            reply = await post(ground, route, data, **headers)
            wrong += faults(route, reply, what)
            if reply.status != status:
                wrong.append(f"{route.name} {what}: {reply.status} {reply.body[:200]!r}")
    assert not wrong, "\n".join(wrong)
    assert await ground.event_count() == before


async def test_the_good_body_behind_all_these_is_not_refused(ground: Ground) -> None:
    """Else the refusals above would say nothing."""
    for route in with_bodies(ground):
        body = json.dumps(example_of(ground, route).body).encode()
        reply = await post(ground, route, body)
        assert reply.status not in (400, 413, 415), f"{route.name}: {reply.body!r}"
        spaced = await post(
            ground, route, b" \r\n\t" + body, content_type="Application/JSON; charset=utf-8"
        )
        assert spaced.status == reply.status or {spaced.status, reply.status} <= {200, 402, 409}


async def test_a_relay_body_with_a_name_twice_goes_on_with_one_of_them(ground: Ground) -> None:
    """What is held for is what the provider is asked for."""
    upstream = ground.upstream
    seen = len(upstream.seen)
    body = (
        b'{"model": "m", "max_tokens": 7, "messages": [{"role": "user", "content": "Hi"}],'
        b' "max_tokens": 3}'
    )
    reply = await ground.site.ask(ground.bert.key, body)
    assert reply.status == 200
    assert upstream.seen[seen].body.count(b"max_tokens") == 1
    assert upstream.seen[seen].json["max_tokens"] == 3


# Time and size on the wire


def head_of(ground: Ground, path: str, more: bytes) -> bytes:
    key = ground.admin.key.encode()
    return (
        b"POST %s HTTP/1.1\r\nhost: here\r\nauthorization: Bearer %s\r\n"
        b"content-type: application/json\r\n%s\r\n" % (path.encode(), key, more)
    )


@pytest.mark.parametrize("path", ["/api/wallet/redeem", CHAT])
async def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(
    ground: Ground, path: str
) -> None:
    async with wire(ground.site.url) as line:
        await line.send(head_of(ground, path, b"content-length: 99999999999\r\n"))
        status, _, body = await line.answer()
        assert (status, b"request_too_large" in body) == (413, True)


async def test_a_body_without_an_end_is_refused_when_it_is_too_large(ground: Ground) -> None:
    async with wire(ground.site.url) as line:
        await line.send(head_of(ground, "/api/wallet/redeem", b"transfer-encoding: chunked\r\n"))

        async def endless() -> None:
            while True:
                await line.send(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
                await asyncio.sleep(0)

        sending = asyncio.create_task(endless())
        try:
            assert (await line.answer())[0] == 413
        finally:
            sending.cancel()


async def test_a_body_that_trickles_in_is_given_up(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.http.api.bodies.BODY_TIMEOUT_S", 0.3)
    async with wire(ground.site.url) as line:
        await line.send(head_of(ground, "/api/wallet/redeem", b"content-length: 50\r\n"), b'{"co')
        status, headers, body = await line.answer()
        assert (status, json.loads(body)["code"]) == (408, "request_timeout")
        assert headers["content-type"] == "application/problem+json"


async def test_a_stranger_is_turned_away_before_their_body_is_waited_for(ground: Ground) -> None:
    head = head_of(ground, "/api/wallet/redeem", b"content-length: 50\r\n")
    async with wire(ground.site.url) as line:
        await line.send(head.replace(ground.admin.key.encode(), b"sk-nobody"))
        assert (await line.answer())[0] == 401


async def test_length_and_encoding_together_are_refused_by_every_route(ground: Ground) -> None:
    for route in routes_of(ground.site):
        head = head_of(ground, route.path, b"content-length: 4\r\ntransfer-encoding: chunked\r\n")
        async with wire(ground.site.url) as line:
            await line.send(head.replace(b"POST", route.method.encode(), 1) + b"0\r\n\r\n")
            assert (await line.answer())[0] == 400, route.name
            assert await line.rest() == b""
