"""One running site with people of every kind, and its routes as the site itself lists them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlencode

import msgspec
from litestar.routes import HTTPRoute

from backend.http.api.door import SCOPES
from backend.http.front import HOT_PATHS, Front
from backend.identity.key_asked import KeyAsked
from backend.kit.postgres import connect
from schemas.identity import Scope
from schemas.ids import account_stream
from tests.conftest import Server
from tests.integration.log_writing import until
from tests.site import Customer, Reply, RunningSite, bearer, chat, running_site
from tests.upstream import FakeUpstream
from tests.valkey import ValkeyServer

MODEL = "m"
PLANS: dict[str, Any] = {
    "relay": False,
    "time_zone": "UTC",
    "discounts": {"3": "5%"},
    "levels": {
        "basic": {
            "name": "Basic",
            "price": "1",
            "items": [{"id": "chat", "models": [MODEL], "monthly_calls": 2}],
        }
    },
}
COUNT_EVENTS = "SELECT count(*) FROM event_log"


class Route(msgspec.Struct, frozen=True):
    """A method on a path template; `scopes`: any of them opens it, none: public, None: unsaid."""

    method: str
    path: str
    scopes: tuple[Scope, ...] | None
    parameters: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


class Example(msgspec.Struct, frozen=True):
    """Arguments under which a route answers whoever may call it."""

    path: Mapping[str, Any] = {}
    query: Mapping[str, Any] = {}
    body: Any = None


class Ground:
    """`bert` has a past: a request, its events and an export, all made over the API itself."""

    def __init__(
        self, site: RunningSite, upstream: FakeUpstream, admin: Customer, bert: Customer
    ) -> None:
        self.site = site
        self.upstream = upstream
        self.admin = admin
        self.bert = bert
        self.berts: dict[str, str] = {}
        """Ids of what is Bert's, by the parameter that asks for it."""
        self._admins: dict[str, str] = {}

    async def learn(self) -> None:
        """Makes what the ids are of."""
        site, key = self.site, self.bert.key
        asked = await site.ask(key, chat(MODEL))
        assert asked.status == 200, asked.body
        plans = json.dumps(PLANS).encode()
        assert (
            await site.send("PUT", "/api/admin/plans", bearer(self.admin.key), plans)
        ).status == 200

        async def is_projected() -> bool:
            return bool((await site.get("/api/requests", key)).json["requests"])

        await until(is_projected, what="the request is listed")
        requests = (await site.get("/api/requests", key)).json["requests"]
        entries = (await site.get("/api/ledger", key)).json["entries"]
        body = json.dumps({"kind": "statement"}).encode()
        export = await site.send("POST", "/api/exports", bearer(key), body)
        assert export.status == 202, export.body
        self.berts = {
            "request_id": requests[0]["request_id"],
            "event_id": entries[0]["event_id"],
            "export_id": export.json["id"],
        }
        self._admins = {
            "person": str(self.bert.person),
            "export_id": await self._started("exports", {"kind": "ledger"}),
            "run_id": await self._started("audits", {}),
        }

    async def _started(self, path: str, asked: Any) -> str:
        reply = await self.site.send(
            "POST", f"/api/admin/{path}", bearer(self.admin.key), json.dumps(asked).encode()
        )
        assert reply.status == 202, reply.body
        return reply.json["id"]

    def ids_for(self, route: Route) -> dict[str, str]:
        """Ids by parameter that a route knows when it is called by who may."""
        public = {"name": MODEL, "path": "nothing"}
        admins = self._admins if Scope.ADMIN in (route.scopes or ()) else {}
        return {**public, **self.berts, **admins}

    async def known(self, key: str) -> str:
        """The same key, once the site's processes know it."""
        async with asyncio.timeout(15):
            while (await self.site.get("/v1/models", key)).status == 401:
                await self.site.refresh()
        return key

    async def key_of(self, customer: Customer, **asked: Any) -> str:
        new = await self.site.base.identity.create_key(customer.person, KeyAsked("more", **asked))
        return await self.known(new.text)

    async def call(
        self, route: Route, example: Example, headers: Mapping[str, str], query: str = ""
    ) -> Reply:
        path = route.path
        for name, value in example.path.items():
            path = path.replace("{" + name + "}", str(value))
        more = "&".join(part for part in (urlencode(example.query), query) if part)
        data = None if example.body is None else json.dumps(example.body).encode()
        kept = {"content-type": "application/json", **headers}
        address = f"{path}?{more}" if more else path
        return await self.site.send(route.method, address, kept, data)

    async def event_count(self) -> int:
        return await self.count(COUNT_EVENTS)

    async def count(self, query: LiteralString) -> int:
        async with await connect(self.site.database.app_url, application="test") as connection:
            row = await (await connection.execute(query)).fetchone()
        assert row is not None
        return row[0]


def routes_of(site: RunningSite) -> list[Route]:
    """Every route that the running application answers on, hot ones too."""
    front = site.relay.app
    assert isinstance(front, Front)
    found = [Route("POST", path, (Scope.RELAY,)) for path in sorted(HOT_PATHS)]
    for route in front.site.routes:
        assert isinstance(route, HTTPRoute), route.path
        found += _routes_at(route)
    return found


def _routes_at(route: HTTPRoute) -> Iterable[Route]:
    path, names = route.path, tuple(route.path_parameters)
    for name, parameter in route.path_parameters.items():
        path = path.replace("{" + parameter.full + "}", "{" + name + "}")
    for handler in route.route_handlers:
        for method in sorted(handler.http_methods):
            # The framework answers OPTIONS by itself: closed like what says nothing.
            if method != "OPTIONS":
                yield Route(method, path, handler.opt.get(SCOPES), names)


@asynccontextmanager
async def ground_on(
    server: Server, valkey: ValkeyServer, folder: Path, **settings: Any
) -> AsyncGenerator[Ground]:
    database = server.fresh()
    valkey.wipe()
    try:
        async with (
            FakeUpstream() as upstream,
            running_site(
                database, folder, redis_url=valkey.url, projecting=True, **settings
            ) as site,
        ):
            await site.serves(upstream.url, MODEL)
            root = await site.base.opening.open_person("root", "a password", administrator=True)
            made = await site.base.identity.create_key(root.person, KeyAsked(scopes=tuple(Scope)))
            admin = Customer(root.person, account_stream(root.person), made.text, made.key)
            ground = Ground(site, upstream, admin, await site.customer("100"))
            await ground.known(admin.key)
            await ground.known(ground.bert.key)
            await ground.learn()
            yield ground
    finally:
        server.drop(database)
