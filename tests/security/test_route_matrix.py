"""Every route of the running site, as the site lists them, against everybody who may not enter."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from backend.http.front import HOT_PATHS
from schemas.errors import BadRequest
from schemas.identity import Scope
from tests.conftest import Server
from tests.integration.log_writing import until
from tests.security.api_ground import Ground, Route, ground_on, routes_of
from tests.security.examples import BODY_METHODS, EXAMPLES, example_of
from tests.site import Customer, Reply
from tests.valkey import ValkeyServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = {
    "GET /",
    "GET /health",
    "GET /metrics",
    "GET /api/openapi.json",
    "GET /api/openapi.json/openapi.json",
    "GET /api/openapi.json/{path}",
}
"""Whoever makes another route public says so here."""


METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"}


class Stranger(msgspec.Struct, frozen=True):
    """Somebody who may not enter, and what they are told."""

    headers: dict[str, str]
    status: int
    code: str
    query: str = ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(
    server: Server, shared_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ground]:
    async with ground_on(server, shared_valkey, tmp_path_factory.mktemp("site")) as ground:
        yield ground


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def anna(ground: Ground) -> Customer:
    """Somebody else than Bert, and no administrator."""
    anna = await ground.site.customer("100")
    await ground.known(anna.key)
    return anna


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_every_route_says_who_may_enter_or_that_it_is_public(ground: Ground) -> None:
    routes = routes_of(ground.site)
    assert len(routes) > 40
    assert [route.name for route in routes if route.scopes is None] == []
    assert {route.name for route in routes if route.scopes == ()} == PUBLIC
    assert all(
        route.scopes == (Scope.ADMIN,) for route in routes if route.path.startswith("/api/admin")
    )
    assert set(EXAMPLES) <= {route.name for route in routes}, "an example of a route that is gone"


async def test_whoever_may_enter_does(ground: Ground) -> None:
    """Else the refusals below would say nothing."""
    for route in sorted(routes_of(ground.site), key=lambda route: route.method == "DELETE"):
        key = ground.bert.key if Scope.ADMIN not in (route.scopes or ()) else ground.admin.key
        headers = bearer(key) if route.scopes else {}
        if route.method == "DELETE":
            continue  # What it would remove is needed below, where Bert removes it himself.
        reply = await ground.call(route, example_of(ground, route), headers)
        said = f"{route.name}: {reply.status} {reply.body[:300]!r}"
        assert reply.status < 500, said
        assert reply.headers["x-request-id"], said
        if route.path not in HOT_PATHS:
            assert reply.headers["x-content-type-options"] == "nosniff", said
            assert reply.headers["cache-control"] == "no-store", said
        assert reply.status not in (400, 401, 403, 405, 415), said
        if reply.status == 404 and route.scopes:
            # The code and the batch of the examples are nobody's; ids in paths are somebody's.
            assert not route.parameters, said


async def strangers_of(ground: Ground, anna: Customer, route: Route) -> dict[str, Stranger]:
    """Everybody who may not enter a route, by what is wrong with them."""
    assert route.scopes
    good = ground.admin.key
    basic = base64.b64encode(f"root:{good}".encode()).decode()
    unknown = {"anonymous": {}, "unknown": bearer("sk-" + "a" * 43), "nonsense": bearer("é")}
    elsewhere = {
        "x-api-key": {"x-api-key": good},
        "api-key": {"api-key": good},
        "x-goog-api-key": {"x-goog-api-key": good},
        "cookie": {"cookie": f"authorization=Bearer {good}; session={good}; key={good}"},
        "basic": {"authorization": f"Basic {basic}"},
        "no scheme": {"authorization": good},
        "proxy header": {"proxy-authorization": f"Bearer {good}"},
    }
    found = {
        name: Stranger(headers, 401, "invalid_api_key")
        for name, headers in {**unknown, **elsewhere}.items()
    }
    for name in ("key", "api_key", "access_token", "token", "authorization"):
        found[f"query {name}"] = Stranger({}, 401, "invalid_api_key", f"{name}={good}")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ended_keys(ground: Ground, anna: Customer) -> dict[str, str]:
    """Keys that were good: with all that their owners could be given."""
    identity = ground.site.base.identity
    expiring = await ground.key_of(
        ground.admin, scopes=tuple(Scope), expires_us=time.time_ns() // 1000 + 3_000_000
    )
    revoked = await ground.site.customer("1")
    await ground.known(revoked.key)
    await identity.revoke_key(revoked.key_id, "test")
    for key in (expiring, revoked.key):
        await until(partial(is_turned_away, ground, key), what="the key has ended")
    return {"expired": expiring, "revoked": revoked.key}


async def is_turned_away(ground: Ground, key: str) -> bool:
    return (await ground.site.get("/v1/models", key)).status == 401


async def test_nobody_enters_without_a_key_that_is_good_now_and_in_its_place(
    ground: Ground, anna: Customer, ended_keys: dict[str, str]
) -> None:
    before = await ground.event_count()
    wrong: list[str] = []
    for route in guarded(ground):
        strangers = await strangers_of(ground, anna, route)
        for name, key in ended_keys.items():
            strangers[name] = Stranger(bearer(key), 401, "invalid_api_key")
        wrong += await let_in(ground, route, strangers)
    assert not wrong, "\n".join(wrong)
    assert await ground.event_count() == before


async def test_no_scope_opens_what_was_made_for_another(ground: Ground, anna: Customer) -> None:
    keys = {scope: await ground.key_of(ground.admin, scopes=(scope,)) for scope in Scope}
    bound = await ground.key_of(ground.admin, scopes=tuple(Scope), addresses=("10.9.8.7",))
    before = await ground.event_count()
    wrong: list[str] = []
    for route in guarded(ground):
        assert route.scopes
        strangers = {
            f"scope {scope}": Stranger(bearer(key), 403, "missing_scope")
            for scope, key in keys.items()
            if scope not in route.scopes
        }
        if Scope.ADMIN in route.scopes:
            strangers["no administrator"] = Stranger(bearer(anna.key), 403, "missing_scope")
        forged = {"x-forwarded-for": "10.9.8.7", "forwarded": "for=10.9.8.7"}
        for name, more in (("other address", {}), ("forged address", forged)):
            strangers[name] = Stranger({**bearer(bound), **more}, 403, "address_not_allowed")
        wrong += await let_in(ground, route, strangers)
    assert not wrong, "\n".join(wrong)
    assert await ground.event_count() == before


async def test_nobody_but_an_administrator_gets_a_key_for_administrators(
    ground: Ground, anna: Customer
) -> None:
    with pytest.raises(BadRequest, match="administrator"):
        await ground.key_of(anna, scopes=(Scope.ADMIN,))


async def test_other_methods_than_those_of_a_route_are_refused(ground: Ground) -> None:
    known: dict[str, set[str]] = {}
    for route in routes_of(ground.site):
        known.setdefault(route.path, set()).add(route.method)
    headers = bearer(ground.admin.key)
    for path, methods in known.items():
        if "{" in path:
            continue
        for method in {
            "GET",
            "POST",
            "PUT",
            "PATCH",
            "DELETE",
            "HEAD",
            "OPTIONS",
            "TRACE",
        } - methods:
            reply = await ground.site.send(method, path, headers)
            # The framework describes the methods of what is public below a public router.
            is_open = method == "OPTIONS" and f"GET {path}" in PUBLIC
            allowed = (204, 403) if is_open else (403, 404, 405)
            assert reply.status in allowed, f"{method} {path}: {reply.status}"


async def test_anothers_ids_are_unknown_in_a_path(ground: Ground, anna: Customer) -> None:
    """The owner goes last: removing is among what is tried."""
    mine = [route for route in guarded(ground) if set(route.parameters) & set(ground.berts)]
    owned = sorted(
        (route for route in mine if Scope.ADMIN not in (route.scopes or ())),
        key=lambda route: route.method == "DELETE",
    )
    assert len(owned) >= 5
    for route in owned:
        example = example_of(ground, route)
        reply = await ground.call(route, example, bearer(anna.key))
        assert (reply.status, reply.json["code"]) == (404, "not_found"), route.name
        for value in ground.berts.values():
            assert value not in reply.body.decode(), route.name
    for route in owned:
        reply = await ground.call(route, example_of(ground, route), bearer(ground.bert.key))
        assert reply.status in (200, 204, 409), f"{route.name}: {reply.status} {reply.body!r}"


async def test_anothers_ids_in_a_query_show_nothing_of_theirs(
    ground: Ground, anna: Customer
) -> None:
    bert = ground.bert
    queries = [
        *(f"{name}={value}" for name, value in ground.berts.items()),
        f"person={bert.person}",
        f"account={bert.account}&stream={bert.account}",
        f"key={bert.key_id}",
        f"user={bert.person}&user_id={bert.person}&owner={bert.person}",
    ]
    marks = [*ground.berts.values(), bert.account, f'"person":{bert.person}']
    shown = 0
    for route in guarded(ground):
        if route.method != "GET" or route.scopes == (Scope.ADMIN,) or route.parameters:
            continue
        for query in queries:
            reply = await ground.call(route, example_of(ground, route), bearer(anna.key), query)
            assert reply.status in (200, 400, 404), f"{route.name}?{query}: {reply.status}"
            body = reply.body.decode()
            assert not [mark for mark in marks if mark in body], f"{route.name}?{query}"
        own = await ground.call(route, example_of(ground, route), bearer(bert.key))
        shown += any(mark in own.body.decode() for mark in marks)
    assert shown >= 4, "the marks are not what these routes show"


async def test_anothers_id_in_a_body_is_no_field(ground: Ground, anna: Customer) -> None:
    before = await ground.event_count()
    tried = 0
    for route in guarded(ground):
        if route.method not in BODY_METHODS or route.scopes != (Scope.WALLET,):
            continue
        example = example_of(ground, route)
        for name in ("person", "account", "user_id", "owner", "key"):
            body: Any = {**example.body, name: ground.bert.person}
            asked = msgspec.structs.replace(example, body=body)
            reply = await ground.call(route, asked, bearer(anna.key))
            assert (reply.status, reply.json["code"]) == (400, "invalid_request"), route.name
            tried += 1
    assert tried >= 20
    assert await ground.event_count() == before


def guarded(ground: Ground) -> list[Route]:
    return [route for route in routes_of(ground.site) if route.scopes]


async def let_in(ground: Ground, route: Route, strangers: dict[str, Stranger]) -> list[str]:
    """Who was not refused as they should be, at once for all of them."""
    example = example_of(ground, route)
    replies = await asyncio.gather(
        *(ground.call(route, example, one.headers, one.query) for one in strangers.values())
    )
    return [
        f"{route.name} as {name}: {reply.status} {reply.body[:200]!r}"
        for (name, one), reply in zip(strangers.items(), replies, strict=True)
        if not is_refused(route, reply, one)
    ]


def is_refused(route: Route, reply: Reply, stranger: Stranger) -> bool:
    """With the status and the code that fit, in the shape of the route's clients."""
    if reply.status != stranger.status:
        return False
    if route.path.startswith("/api/"):
        shape, problem = "application/problem+json", reply.json
    else:
        shape, problem = "application/json", reply.json["error"]
    is_challenged = reply.status != 401 or reply.headers.get("www-authenticate") == "Bearer"
    return (
        problem["code"] == stranger.code
        and reply.headers["content-type"] == shape
        and (is_challenged)
    )
