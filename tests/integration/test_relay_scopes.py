"""Scopes at the door: what a key was not made for answers 403, before anything is held."""

from __future__ import annotations

from pathlib import Path

from backend.identity.key_asked import KeyAsked
from schemas.identity import Scope
from tests.conftest import Database
from tests.site import chat, running_site
from tests.upstream import FakeUpstream


async def test_a_key_without_the_relay_scope_is_refused_and_pays_nothing(
    database: Database, tmp_path: Path
) -> None:
    async with FakeUpstream() as upstream, running_site(database, tmp_path) as site:
        await site.serves(upstream.url)
        anna = await site.customer(scopes=(Scope.WALLET,))
        for reply in (await site.ask(anna.key, chat()), await site.get("/v1/models", anna.key)):
            assert reply.status == 403
            error = reply.json["error"]
            assert (error["code"], error["type"]) == ("missing_scope", "invalid_request_error")
            assert "`relay`" in error["message"]
            assert anna.key not in reply.body.decode()
        assert (await site.account(anna)).held_upt == 0
        assert upstream.seen == []
        assert (await site.get("/v1/dashboard/billing/subscription", anna.key)).status == 200


async def test_billing_is_open_to_keys_of_the_relay_and_to_no_others(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        relay = await site.customer(scopes=(Scope.RELAY,))
        root = await site.base.opening.open_person("root", "a password", administrator=True)
        new = await site.base.identity.create_key(root.person, KeyAsked(scopes=(Scope.ADMIN,)))
        for path in ("usage", "subscription"):
            assert (await site.get(f"/dashboard/billing/{path}", relay.key)).status == 200
            refused = await site.get(f"/dashboard/billing/{path}", new.text)
            assert refused.status == 403
            assert "`wallet` or `relay`" in refused.json["error"]["message"]
