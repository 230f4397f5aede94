"""`/api/wallet` and its twins for administrators: codes, gifts, plans, and what an account has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backend.identity.key_asked import KeyAsked
from schemas.identity import Reset, Scope
from tests.conftest import Database
from tests.integration.projection_ground import until
from tests.site import Customer, Reply, RunningSite, bearer, chat, running_site
from tests.upstream import FakeUpstream
from tests.valkey import ValkeyServer

PLANS: dict[str, Any] = {
    "relay": True,
    "time_zone": "Asia/Shanghai",
    "discounts": {"3": "5%"},
    "levels": {
        "basic": {
            "name": "Basic",
            "price": "1",
            "items": [{"id": "chat", "models": ["covered"], "monthly_calls": 2}],
        },
        "pro": {
            "price": "5.5",
            "import": ["basic"],
            "items": [{"id": "all", "models": ["dear"], "monthly_calls": -1}],
        },
    },
}


class Ground:
    def __init__(self, site: RunningSite, admin: str) -> None:
        self.site = site
        self.admin = admin

    async def customer(self, points: str | None = "10", **key: Any) -> Customer:
        customer = await self.site.customer(points, **key)
        await self.known(customer.key)
        return customer

    async def known(self, key: str) -> None:
        """The projector's own transactions hold readers of the log back for a moment."""
        async with asyncio.timeout(15):
            while (await self.site.get("/api/key", key)).status == 401:
                await self.site.refresh()

    async def post(self, path: str, key: str, body: Any, **headers: str) -> Reply:
        return await self.send("POST", path, key, body, **headers)

    async def send(self, method: str, path: str, key: str, body: Any, **headers: str) -> Reply:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(body).encode()
        return await self.site.send(method, path, {**bearer(key), **more}, data)

    async def codes(self, kind: str = "redeem", count: int = 1, **more: Any) -> list[str]:
        body = {"kind": kind, "points": "66", "count": count, **more}
        reply = await self.post("/api/admin/codes", self.admin, body)
        assert reply.status == 200, reply.body
        return reply.json["codes"]

    async def set_plans(self, plans: Any = PLANS) -> Reply:
        return await self.send("PUT", "/api/admin/plans", self.admin, plans)

    async def wallet(self, customer: Customer) -> Any:
        return (await self.site.get("/api/wallet", customer.key)).json


@pytest.fixture
async def ground(database: Database, tmp_path: Path, valkey: ValkeyServer) -> AsyncIterator[Ground]:
    async with running_site(database, tmp_path, redis_url=valkey.url, projecting=True) as site:
        root = await site.base.opening.open_person("root", "a password", administrator=True)
        key = await site.base.identity.create_key(root.person, KeyAsked(scopes=(Scope.ADMIN,)))
        ground = Ground(site, key.text)
        await ground.known(key.text)
        yield ground


async def test_a_code_is_redeemed_once_in_whatever_way_it_is_typed(ground: Ground) -> None:
    (text,) = await ground.codes()
    anna, bert = await ground.customer("0.5"), await ground.customer("1")
    assert text.startswith("SP-")
    typed = f"  {text.lower().replace('-', ' ').replace('0', 'o').replace('1', 'l')} "
    done = await ground.post("/api/wallet/redeem", anna.key, {"code": typed})
    assert done.status == 200, done.body
    assert done.json == {
        "stream": anna.account,
        "version": 3,
        "points": "66",
        "available": "66.5",
        "repeated": False,
    }
    again = await ground.post("/api/wallet/redeem", bert.key, {"code": text})
    assert (again.status, again.json["code"]) == (404, "code_not_good")
    assert again.json["detail"] == "This code is unknown, used or expired."
    assert (await ground.wallet(bert))["available"] == "1"


async def test_a_repeated_key_answers_as_before_and_another_body_is_refused(
    ground: Ground,
) -> None:
    first, second = await ground.codes(count=2)
    anna = await ground.customer(None)
    key = {"idempotency_key": "k-1"}
    done = await ground.post("/api/wallet/redeem", anna.key, {"code": first}, **key)
    again = await ground.post("/api/wallet/redeem", anna.key, {"code": first}, **key)
    assert again.json == {**done.json, "repeated": True}
    other = await ground.post("/api/wallet/redeem", anna.key, {"code": second}, **key)
    assert (other.status, other.json["code"]) == (409, "idempotency_conflict")
    assert (await ground.wallet(anna))["available"] == "66"


async def test_a_gift_is_taken_once_of_a_type_and_the_code_stays_good(ground: Ground) -> None:
    spring = await ground.codes("gift", 2, type="spring")
    (autumn,) = await ground.codes("gift", type="autumn")
    anna, bert = await ground.customer(None), await ground.customer(None)
    taken = await ground.post("/api/wallet/gift", anna.key, {"code": spring[0]})
    assert (taken.status, taken.json["points"]) == (200, "66")
    second = await ground.post("/api/wallet/gift", anna.key, {"code": spring[1]})
    assert (second.status, second.json["code"]) == (409, "gift_taken")
    assert (await ground.post("/api/wallet/gift", anna.key, {"code": autumn})).status == 200
    assert (await ground.post("/api/wallet/gift", bert.key, {"code": spring[1]})).status == 200
    assert (await ground.wallet(anna))["available"] == "132"


async def test_a_code_of_the_other_kind_is_pointed_out_and_not_used_up(ground: Ground) -> None:
    (text,) = await ground.codes("gift", type="spring")
    anna = await ground.customer(None)
    wrong = await ground.post("/api/wallet/redeem", anna.key, {"code": text})
    assert (wrong.status, wrong.json["code"]) == (400, "other_kind_of_code")
    assert (await ground.post("/api/wallet/gift", anna.key, {"code": text})).status == 200


async def test_codes_are_listed_by_state_with_who_and_when_and_never_their_text(
    ground: Ground,
) -> None:
    made = await ground.post(
        "/api/admin/codes", ground.admin, {"kind": "redeem", "points": "5", "count": 5}
    )
    batch, codes = made.json["batch"], made.json["codes"]
    anna = await ground.customer(None)
    await ground.post("/api/wallet/redeem", anna.key, {"code": codes[0]})
    voided = await ground.post("/api/admin/codes/void", ground.admin, {"code": codes[1]})
    assert voided.json == {"voided": 1}
    again = await ground.post("/api/admin/codes/void", ground.admin, {"code": codes[1]})
    assert again.json == {"voided": 1}
    used = await ground.post("/api/admin/codes/void", ground.admin, {"code": codes[0]})
    assert (used.status, used.json["code"]) == (409, "conflict")

    async def listed(**query: str) -> Any:
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return (await ground.site.get(f"/api/admin/codes?{words}", ground.admin)).json

    async def is_listed() -> bool:
        return bool((await listed(batch=batch, state="void"))["codes"])

    await until(is_listed)
    (entry,) = (await listed(batch=batch, state="used"))["codes"]
    assert (entry["person"], entry["hint"], entry["points"]) == (anna.person, codes[0][-4:], "5")
    assert entry["redeemed_us"] > entry["issued_us"]
    page = await listed(batch=batch, limit="3")
    rest = await listed(batch=batch, limit="3", cursor=page["next"])
    states = [one["state"] for one in (*page["codes"], *rest["codes"])]
    assert (sorted(states), rest["next"]) == (["unused"] * 3 + ["used", "void"], None)
    everything = json.dumps((page, rest))
    assert all(text not in everything for text in codes)

    ended = await ground.post("/api/admin/codes/void", ground.admin, {"batch": batch})
    assert ended.json == {"voided": 3}
    gone = await ground.post("/api/wallet/redeem", anna.key, {"code": codes[2]})
    assert (gone.status, gone.json["code"]) == (404, "code_not_good")


async def test_codes_made_under_one_key_are_the_same_however_often_asked_for(
    ground: Ground,
) -> None:
    body = {"kind": "redeem", "points": "5", "count": 205}
    first = await ground.post("/api/admin/codes", ground.admin, body, idempotency_key="batch-1")
    again = await ground.post("/api/admin/codes", ground.admin, body, idempotency_key="batch-1")
    assert again.json == {**first.json, "repeated": True}
    assert len(set(first.json["codes"])) == 205
    assert first.headers["cache-control"] == "no-store"
    other = await ground.post(
        "/api/admin/codes", ground.admin, {**body, "count": 206}, idempotency_key="batch-1"
    )
    assert (other.status, other.json["code"]) == (409, "idempotency_conflict")


async def test_without_valkey_nobody_redeems_and_the_code_stays_good(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        root = await site.base.opening.open_person("root", "a password", administrator=True)
        key = await site.base.identity.create_key(root.person, KeyAsked(scopes=(Scope.ADMIN,)))
        ground = Ground(site, key.text)
        await ground.known(key.text)
        (text,) = await ground.codes()
        anna = await ground.customer(None)
        down = await ground.post("/api/wallet/redeem", anna.key, {"code": text})
        assert (down.status, down.json["code"]) == (503, "service_unavailable")
        assert int(down.headers["retry-after"]) > 0
        assert (await ground.wallet(anna))["available"] == "0"


async def test_a_subscription_is_quoted_bought_and_shown_with_what_it_covers(
    ground: Ground,
) -> None:
    site = ground.site
    assert (await ground.set_plans()).json["changed"] == ["basic", "pro"]
    assert (await ground.set_plans()).json["changed"] == []
    anna = await ground.customer("20")
    quoted = (await site.get("/api/wallet/quote?level=basic&months=3", anna.key)).json
    assert (quoted["kind"], quoted["due"], quoted["missing"]) == ("bought", "28.5", "8.5")
    refused = await ground.post("/api/wallet/subscribe", anna.key, {"level": "basic", "months": 3})
    assert (refused.status, refused.json["code"]) == (402, "insufficient_quota")
    assert "8.5 more are needed" in refused.json["detail"]
    done = await ground.post("/api/wallet/subscribe", anna.key, {"level": 1, "months": 1})
    assert (done.status, done.json["kind"], done.json["due"]) == (200, "bought", "10")
    wallet = await ground.wallet(anna)
    assert (wallet["available"], wallet["group"]) == ("10", "basic")
    subscription = wallet["subscription"]
    assert subscription["until_us"] == done.json["until_us"] == subscription["period_end_us"]
    (item,) = subscription["items"]
    assert (item["id"], item["used"], item["limit"], item["left"]) == ("chat", 0, 2, 2)

    async with FakeUpstream() as upstream:
        await site.serves(upstream.url, "covered")
        for _ in range(3):
            assert (await site.ask(anna.key, chat("covered"))).status == 200
    wallet = await ground.wallet(anna)
    assert wallet["subscription"]["items"][0]["left"] == 0
    assert 9 < float(wallet["available"]) < 10, "the third call was paid with points"


async def test_a_second_click_is_the_same_purchase_and_a_key_of_its_own_is_another(
    ground: Ground,
) -> None:
    await ground.set_plans()
    anna = await ground.customer("100")
    body = {"level": "basic", "months": 1}
    first = await ground.post("/api/wallet/subscribe", anna.key, body)
    again = await ground.post("/api/wallet/subscribe", anna.key, body)
    assert again.json == {**first.json, "repeated": True}
    more = await ground.post("/api/wallet/subscribe", anna.key, body, idempotency_key="another")
    assert (more.json["kind"], more.json["repeated"]) == ("renewed", False)
    up = await ground.post("/api/wallet/subscribe", anna.key, {"level": "pro", "months": 1})
    assert (up.json["kind"], up.json["price"]) == ("changed", "55")
    assert 19 < float(up.json["credit"]) <= 20
    items = (await ground.wallet(anna))["subscription"]["items"]
    assert [item["id"] for item in items] == ["all", "chat"]
    assert items[0]["limit"] is None


async def test_an_administrator_grants_and_subscribes_for_others(ground: Ground) -> None:
    await ground.set_plans()
    anna = await ground.customer(None)
    body = {"person": anna.person, "points": "12.5", "reason": "welcome"}
    first = await ground.post("/api/admin/grants", ground.admin, body, idempotency_key="g")
    again = await ground.post("/api/admin/grants", ground.admin, body, idempotency_key="g")
    assert (first.json["points"], again.json) == ("12.5", {**first.json, "repeated": True})
    path = f"/api/admin/accounts/{anna.person}/subscribe"
    done = await ground.post(path, ground.admin, {"level": "1", "months": 1})
    assert (done.status, done.json["available"]) == (200, "2.5")
    for route in ("grants", "codes", "codes/void", f"accounts/{anna.person}/subscribe"):
        refused = await ground.post(f"/api/admin/{route}", anna.key, {})
        assert (refused.status, refused.json["code"]) == (403, "missing_scope")


async def test_the_wallet_says_what_the_key_in_use_may_still_spend(ground: Ground) -> None:
    anna = await ground.customer("10", quota_upt=3_000_000, reset=Reset.DAILY, group="pro")
    wallet = await ground.wallet(anna)
    assert (wallet["available"], wallet["group"]) == ("10", "pro")
    assert (wallet["quota"]["limit"], wallet["quota"]["left"]) == ("3", "3")
    assert wallet["subscription"] is None


async def test_a_body_of_another_shape_is_refused_and_its_code_is_not_repeated(
    ground: Ground,
) -> None:
    anna = await ground.customer(None)
    (text,) = await ground.codes()
    for body in ({"code": text, "extra": 1}, {"code": [text]}, {"kode": text}, []):
        reply = await ground.post("/api/wallet/redeem", anna.key, body)
        assert (reply.status, reply.json["code"]) == (400, "invalid_request")
        assert text not in reply.body.decode()
    for body in ({"level": 0, "months": 1}, {"level": "basic", "months": 2}):
        assert (await ground.post("/api/wallet/subscribe", anna.key, body)).status == 400


async def test_every_route_is_described(ground: Ground) -> None:
    paths = (await ground.site.get("/api/openapi.json")).json["paths"]
    for path in (
        "/api/wallet",
        "/api/wallet/redeem",
        "/api/wallet/gift",
        "/api/wallet/subscribe",
        "/api/wallet/quote",
        "/api/plans",
        "/api/admin/grants",
        "/api/admin/codes",
        "/api/admin/codes/void",
        "/api/admin/plans",
        "/api/admin/accounts/{person}/subscribe",
    ):
        for described in paths[path].values():
            assert described["operationId"]
            assert described["description"]
