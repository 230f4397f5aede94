"""Statements, requests, usage, ledger and exports over HTTP: own ones, and all for operators."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest

from backend.app.exporting import fresh_of
from backend.identity.key_asked import KeyAsked
from projections.sealing import TableSealer
from schemas.identity import Scope
from tests.conftest import Database
from tests.integration.projection_ground import until
from tests.site import Customer, Reply, RunningSite, bearer, chat, running_site
from tests.upstream import FakeUpstream
from workers.exporting import Exporter

NOBODYS = "01977420-dc12-7180-b5bf-992dc9e9c614"


async def admin_key(site: RunningSite) -> str:
    root = await site.base.opening.open_person("root", "a password", administrator=True)
    new = await site.base.identity.create_key(root.person, KeyAsked(scopes=(Scope.ADMIN,)))
    await site.refresh()
    return new.text


async def post(site: RunningSite, path: str, key: str, body: Any) -> Reply:
    return await site.send("POST", path, bearer(key), json.dumps(body))


async def get(site: RunningSite, path: str, key: str) -> Any:
    reply = await site.get(path, key)
    assert reply.status == 200, (path, reply.body)
    return reply.json


async def fresh(site: RunningSite, path: str, key: str) -> Any:
    """The answer once its table has what `after` names, however slow this machine is."""

    async def is_there() -> bool:
        return not (await get(site, path, key))["stale"]

    await until(is_there)
    return await get(site, path, key)


async def called(site: RunningSite, customer: Customer, calls: int = 1) -> int:
    """So many calls; returns the account's version after them."""
    for _ in range(calls):
        assert (await site.ask(customer.key, chat())).status == 200
    await site.ended(customer, calls)
    return len(await site.events(customer))


def exporter(site: RunningSite) -> Exporter:
    base = site.base
    return Exporter(base.pool, base.settings.data_dir, base.clock, base.randomness, fresh_of(base))


async def test_a_user_reads_balance_movements_requests_and_usage(
    database: Database, tmp_path: Path
) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, projecting=True) as site,
    ):
        await site.serves(upstream.url)
        anna = await site.customer("10")
        version = await called(site, anna, 3)
        page = await fresh(site, f"/api/statement?after={version}&limit=2", anna.key)
        assert (page["stale"], len(page["entries"])) == (False, 2)
        newest = page["entries"][0]
        assert (newest["kind"], newest["amount"], newest["balance"]) == (
            "settle", "-0.0015", "9.9955",
        )  # fmt: skip
        assert newest["at"].endswith("Z")
        assert newest["topic"] == "suanpan.ledger"
        rest = await get(site, f"/api/statement?before={page['next']}", anna.key)
        assert [entry["kind"] for entry in rest["entries"]] == ["settle", "grant"]
        assert rest["next"] is None
        granted = await get(site, "/api/statement?kind=grant&at_least=10&direction=in", anna.key)
        assert [entry["grant_kind"] for entry in granted["entries"]] == ["operator"]
        sums = await get(site, "/api/statement/totals", anna.key)
        assert (sums["points_in"], sums["points_out"], sums["charged"]) == (
            "10", "0.0045", "0.0045",
        )  # fmt: skip
        at = quote(rest["entries"][0]["at"])
        then = await get(site, f"/api/statement/balance?at={at}&exact=true", anna.key)
        assert (then["posted"], then["held"]) == (rest["entries"][0]["balance"], "0")
        requests = await fresh(site, f"/api/requests?after={version}&model=m", anna.key)
        assert len(requests["requests"]) == 3
        one = requests["requests"][0]
        assert (await get(site, f"/api/requests/{one['request_id']}", anna.key)) == one
        assert (one["points"], one["status"], one["key"]) == ("0.0015", 200, anna.key_id)
        asked = await get(site, "/api/requests/totals", anna.key)
        usage = await fresh(site, f"/api/usage?step=hour&after={version}", anna.key)
        assert asked["charged"] == usage["total"]["charged"] == "0.0045"
        assert usage["usage"][0]["requests"] == asked["requests"] == 3


async def test_what_has_not_arrived_yet_is_said_to_be_stale(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path, projecting=True) as site:
        anna = await site.customer("10")
        for path in ("statement", "statement/totals", "statement/balance", "requests", "usage"):
            await fresh(site, f"/api/{path}?after=2", anna.key)
            assert (await get(site, f"/api/{path}?after=99", anna.key))["stale"] is True


async def test_wrong_questions_are_refused_by_name(database: Database, tmp_path: Path) -> None:
    async with running_site(database, tmp_path, projecting=True) as site:
        anna, root = await site.customer(), await admin_key(site)
        refused = {
            "/api/statement?kind=x": "`kind`",
            "/api/statement?limit=0": "`limit`",
            "/api/statement?limit=1001": "`limit`",
            "/api/statement?before=1.2": "`before`",
            "/api/statement?since=soon": "time",
            "/api/statement?key=99999999999999999999": "`key`",
            "/api/requests?outcome=x": "`outcome`",
            "/api/requests?request_id=1": "`request_id`",
            "/api/usage?step=week": "`step`",
            "/api/ledger?type=a-b": "`type`",
            "/api/statement/balance?at=never": "time",
        }
        for path, word in refused.items():
            reply = await site.get(path, anna.key)
            assert (reply.status, reply.json["code"]) == (400, "invalid_request"), path
            assert word in reply.json["detail"], path
        for path in (
            "/api/admin/statement?after=3",
            "/api/admin/ledger?stream=person:1",
            "/api/admin/ledger?stream=account:1&person=1",
            "/api/admin/statement/balance",
        ):
            assert (await site.get(path, root)).status == 400, path


async def test_another_users_ids_are_unknown(database: Database, tmp_path: Path) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, projecting=True) as site,
    ):
        await site.serves(upstream.url)
        anna, bert = await site.customer(), await site.customer()
        version = await called(site, anna)
        own = await fresh(site, f"/api/requests?after={version}", anna.key)
        request_id = own["requests"][0]["request_id"]
        entry = (await get(site, "/api/ledger", anna.key))["entries"][0]
        export = (await post(site, "/api/exports", anna.key, {"kind": "ledger"})).json
        await exporter(site).export_next()
        for path in (
            f"/api/requests/{request_id}",
            f"/api/ledger/{entry['event_id']}",
            f"/api/exports/{export['id']}",
            f"/api/exports/{export['id']}/file",
        ):
            assert (await site.get(path, anna.key)).status == 200, path
            reply = await site.get(path, bert.key)
            assert (reply.status, reply.json["code"]) == (404, "not_found"), path
            unknown = await site.get(path.replace(path.split("/")[3], NOBODYS), bert.key)
            assert unknown.json["detail"] == reply.json["detail"]
        removing = await site.send("DELETE", f"/api/exports/{export['id']}", bearer(bert.key))
        assert removing.status == 404
        statement = await get(site, f"/api/statement?request_id={request_id}", bert.key)
        assert statement["entries"] == []
        ledger = await get(site, "/api/ledger", bert.key)
        assert {one["stream"] for one in ledger["entries"]} == {bert.account}


async def test_a_users_key_opens_no_administrators_route(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        anna = await site.customer()
        described = (await site.get("/api/openapi.json")).json
        own = {"statement", "requests", "usage", "ledger", "exports"}
        seen = 0
        for path, methods in described["paths"].items():
            if not path.startswith("/api/admin/") or path.split("/")[3] not in {
                *own, "health", "audits",
            }:  # fmt: skip
                continue
            for method, about in methods.items():
                seen += 1
                assert about["operationId"]
                assert about["description"]
                given = path
                for name in ("request_id", "event_id", "export_id", "run_id"):
                    given = given.replace(f"{{{name}}}", NOBODYS)
                reply = await site.send(method.upper(), given, bearer(anna.key), "{}")
                assert (reply.status, reply.json["code"]) == (403, "missing_scope"), given
        assert seen >= 18


async def test_an_operator_reads_everybodys_and_one_persons(
    database: Database, tmp_path: Path
) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, projecting=True) as site,
    ):
        await site.serves(upstream.url)
        anna, bert, root = await site.customer(), await site.customer(), await admin_key(site)
        for customer in (anna, bert):
            version = await called(site, customer, 2)
            for path in ("statement", "requests", "usage"):
                await fresh(
                    site, f"/api/admin/{path}?person={customer.person}&after={version}", root
                )
        lines = (await get(site, "/api/admin/statement?kind=settle", root))["entries"]
        assert {line["account"] for line in lines} == {anna.account, bert.account}
        assert len(lines) == 4
        first = await get(site, "/api/admin/statement?limit=3", root)
        following = await get(site, f"/api/admin/statement?before={first['next']}", root)
        every = (await get(site, "/api/admin/statement?limit=1000", root))["entries"]
        assert first["entries"] + following["entries"] == every
        own = await get(site, f"/api/admin/requests?person={bert.person}", root)
        assert {one["account"] for one in own["requests"]} == {bert.account}
        any_id = own["requests"][0]["request_id"]
        assert (await get(site, f"/api/admin/requests/{any_id}", root))["account"] == bert.account
        totals = await get(site, "/api/admin/requests/totals", root)
        usage = await get(site, "/api/admin/usage", root)
        assert totals["charged"] == usage["total"]["charged"] == "0.006"
        balance = await get(site, f"/api/admin/statement/balance?person={anna.person}", root)
        assert balance["posted"] == "9.997"
        ledger = await get(site, "/api/admin/ledger?type=HoldSettled&limit=3", root)
        older = await get(site, f"/api/admin/ledger?type=HoldSettled&before={ledger['next']}", root)
        assert len(ledger["entries"]) + len(older["entries"]) == 4
        stream = await get(site, f"/api/admin/ledger?stream={anna.account}", root)
        event_id = stream["entries"][-1]["event_id"]
        assert (await get(site, f"/api/admin/ledger/{event_id}", root))["type"] == "AccountOpened"


async def test_an_entry_shows_its_chain_its_price_and_the_seal_that_covers_it(
    database: Database, tmp_path: Path
) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, projecting=True) as site,
    ):
        await site.serves(upstream.url)
        anna = await site.customer()
        await called(site, anna)
        base = site.base
        sealer = TableSealer(
            database.app_url, base.settings.data_dir, base.clock, base.randomness, rest_factor=0
        )
        seal = await sealer.seal_now()
        assert seal is not None
        await called(site, anna, 2)
        entries = (await get(site, "/api/ledger", anna.key))["entries"]
        assert [entry["version"] for entry in entries] == [8, 7, 6, 5, 4, 3, 2, 1]
        for newer, older in pairwise(entries):
            assert newer["prev_hash"] == older["hash"]
        settled = next(entry for entry in entries if entry["version"] == 4)
        assert settled["payload"]["amount_upt"] == 1_500
        assert settled["price"]["price"]["input_npt"] == 100_000
        assert settled["price"]["version"] == 1
        assert (settled["seal"]["number"], settled["seal"]["root"]) == (1, seal.root.hex())
        assert [entry["seal"] is None for entry in entries] == [True] * 4 + [False] * 4
        one = await get(site, f"/api/ledger/{settled['event_id']}", anna.key)
        assert one == settled
        with psycopg.connect(database.superuser_url) as connection:
            row = connection.execute(
                b"SELECT encode(hash, 'hex') FROM event_log WHERE event_id = %(id)s",
                {"id": UUID(settled["event_id"])},
            ).fetchone()
        assert row == (settled["hash"],)


@pytest.mark.parametrize("shape", ["csv", "jsonl"])
async def test_an_export_is_asked_for_made_fetched_and_removed(
    database: Database, tmp_path: Path, shape: str
) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, projecting=True) as site,
    ):
        await site.serves(upstream.url)
        anna = await site.customer()
        await called(site, anna, 2)
        body = {"kind": "statement", "format": shape, "filters": {"kind": "settle"}}
        asked = await post(site, "/api/exports", anna.key, body)
        assert (asked.status, asked.json["status"], asked.json["file"]) == (202, "waiting", None)
        path = f"/api/exports/{asked.json['id']}"
        early = await site.get(f"{path}/file", anna.key)
        assert (early.status, early.json["code"]) == (409, "conflict")
        await exporter(site).export_next()
        job = await get(site, path, anna.key)
        assert (job["status"], job["rows"], job["stale"]) == ("done", 2, False)
        assert (await get(site, "/api/exports", anna.key))["exports"] == [job]
        file = await site.get(job["file"], anna.key)
        assert file.status == 200
        assert len(file.body) == job["bytes"]
        assert f".{shape}" in file.headers["content-disposition"]
        if shape == "csv":
            assert file.headers["content-type"] == "text/csv; charset=utf-8"
            amounts = [row["amount"] for row in csv.DictReader(io.StringIO(file.body.decode()))]
        else:
            amounts = [json.loads(line)["amount"] for line in file.body.splitlines()]
        assert amounts == ["-0.0015", "-0.0015"]
        assert (await site.send("DELETE", path, bearer(anna.key))).status == 204
        assert (await site.get(path, anna.key)).status == 404
        for wrong in ({"kind": "people"}, {"kind": "usage"}, {"kind": "ledger", "owner": 3}):
            assert (await post(site, "/api/exports", anna.key, wrong)).status == 400


async def test_an_operators_export_holds_everybody_and_is_for_operators(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path, projecting=True) as site:
        anna, bert, root = await site.customer(), await site.customer(), await admin_key(site)
        asked = (await post(site, "/api/admin/exports", root, {"kind": "statement"})).json
        await exporter(site).export_next()
        job = await get(site, f"/api/admin/exports/{asked['id']}", root)
        assert (job["status"], job["person"]) == ("done", None)
        file = await site.get(job["file"], root)
        rows = list(csv.DictReader(io.StringIO(file.body.decode())))
        assert {anna.account, bert.account} <= {row["account"] for row in rows}
        assert (await site.get(job["file"], anna.key)).status == 403
        assert (await site.get(f"/api/exports/{job['id']}/file", anna.key)).status == 404


async def test_site_health_shows_projections_parked_streams_and_seals(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path, projecting=True) as site:
        anna, root = await site.customer(), await admin_key(site)
        await fresh(site, "/api/statement?after=2", anna.key)

        async def caught_up() -> bool:
            health = await get(site, "/api/admin/health", root)
            return all(one["rows"] == 0 for one in health["projections"])

        await until(caught_up)
        health = await get(site, "/api/admin/health", root)
        names = {one["name"] for one in health["projections"]}
        assert {"balance", "statement", "requests", "usage"} <= names
        assert (health["parked"], health["publisher"], health["seals"]) == ([], None, None)
        assert health["warnings"] == []
        with psycopg.connect(database.superuser_url, autocommit=True) as connection:
            connection.execute(
                b"INSERT INTO parked (consumer, stream, version, reason)"
                b" VALUES ('usage', 'account:1', 3, 'I3: twice')"
            )
        health = await get(site, "/api/admin/health", root)
        assert health["parked"] == [
            {"consumer": "usage", "stream": "account:1", "version": 3, "reason": "I3: twice"}
        ]
        assert health["warnings"] == ["usage: 1 parked"]
