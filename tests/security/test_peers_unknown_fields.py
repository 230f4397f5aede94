"""A field that nobody knows is refused and not dropped: elsewhere, limits that were spelt otherwise
were silently not saved (docs/peers.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backend.identity.key_asked import KeyAsked
from schemas.identity import Scope
from tests.conftest import Database
from tests.site import RunningSite, bearer, running_site
from tests.valkey import ValkeyServer

STRANGE = {"surprise": "100"}
MONEY = {
    ("post", "/api/wallet/redeem"),
    ("post", "/api/wallet/gift"),
    ("post", "/api/wallet/subscribe"),
    ("post", "/api/admin/grants"),
    ("post", "/api/admin/codes"),
    ("post", "/api/admin/codes/void"),
    ("put", "/api/admin/plans"),
    ("post", "/api/admin/accounts/{person}/subscribe"),
}


async def test_every_route_that_takes_a_body_refuses_fields_it_does_not_know(
    database: Database, tmp_path: Path, valkey: ValkeyServer
) -> None:
    async with running_site(database, tmp_path, redis_url=valkey.url) as site:
        key = await administrators_key(site)
        paths = (await site.get("/api/openapi.json")).json["paths"]
        routes = {
            (method, path)
            for path, methods in paths.items()
            for method, described in methods.items()
            if "requestBody" in described
        }
        assert routes >= MONEY
        before = await events_of(site)
        for method, path in sorted(routes):
            reply = await send(site, method, path.format_map(Numbers()), key, STRANGE)
            assert reply.status == 400, (method, path, reply.body)
            assert "unknown field `surprise`" in reply.body.decode(), (method, path, reply.body)
        assert await events_of(site) == before


class Numbers(dict[str, str]):
    """What stands in a path, whatever it is called."""

    def __missing__(self, name: str) -> str:
        return "1" if not name.endswith("_id") else "01a1f9bb-0ba4-7bbb-a515-b228ecd68d74"


async def administrators_key(site: RunningSite) -> str:
    root = await site.base.opening.open_person("root", "a password", administrator=True)
    scopes = (Scope.RELAY, Scope.WALLET, Scope.ADMIN)
    key = await site.base.identity.create_key(root.person, KeyAsked(scopes=scopes))
    await site.refresh()
    return key.text


async def send(site: RunningSite, method: str, path: str, key: str, body: Any) -> Any:
    return await site.send(method.upper(), path, bearer(key), json.dumps(body).encode())


async def events_of(site: RunningSite) -> int:
    async with site.base.pool.connection() as connection:
        found = await (await connection.execute("SELECT count(*) FROM event_log")).fetchone()
    assert found is not None
    return found[0]
