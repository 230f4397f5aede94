"""The API's door: who may enter, what refusals look like, and what it says of itself."""

from __future__ import annotations

from pathlib import Path

from backend.identity.service import KeyAsked
from schemas.identity import Scope
from tests.conftest import Database
from tests.site import running_site


async def test_the_api_lets_in_by_scope_and_refuses_as_problems(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        anna = await site.customer("1")
        own = await site.get("/api/key", anna.key)
        assert (own.status, own.json["scopes"]) == (200, ["relay", "wallet"])
        relay_only = await site.base.identity.create_key(
            anna.person, KeyAsked(scopes=(Scope.RELAY,))
        )
        refused = {
            "": (401, "invalid_api_key"),
            "sk-unknown": (401, "invalid_api_key"),
            relay_only.text: (403, "missing_scope"),
        }
        for key, (status, code) in refused.items():
            reply = await site.get("/api/key", key or None)
            assert (reply.status, reply.json["code"], reply.json["status"]) == (
                status, code, status,
            )  # fmt: skip
            assert reply.headers["content-type"] == "application/problem+json"
        unknown = await site.get("/api/none", anna.key)
        assert (unknown.status, unknown.json["code"]) == (404, "not_found")


async def test_the_api_describes_itself_in_openapi_3_1(database: Database, tmp_path: Path) -> None:
    async with running_site(database, tmp_path) as site:
        described = (await site.get("/api/openapi.json")).json
        assert described["openapi"].startswith("3.1")
        assert "/api/key" in described["paths"]
        assert all(path.startswith("/api/") for path in described["paths"])
