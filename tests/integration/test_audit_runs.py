"""Audits that an operator starts over HTTP: one at a time, each in its process, with progress."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg

from backend.app.auditing import Auditor
from backend.identity.key_asked import KeyAsked
from backend.ledger.audit_runs import claim_run
from schemas.identity import Scope
from tests.conftest import Database
from tests.integration.projection_ground import until
from tests.site import RunningSite, bearer, running_site

TAMPER = b"""
UPDATE streams SET state = convert_to('{"person":1,"issued_upt":99000000}', 'UTF8')
WHERE stream = 'account:1'
"""
LEASE_OUT = b"UPDATE audit_runs SET lease_until = clock_timestamp() - interval '1 second'"


async def admin_key(site: RunningSite) -> str:
    root = await site.base.opening.open_person("root", "a password", administrator=True)
    new = await site.base.identity.create_key(root.person, KeyAsked(scopes=(Scope.ADMIN,)))
    await site.refresh()
    return new.text


async def start(site: RunningSite, key: str, body: Any = None) -> Any:
    return await site.send("POST", "/api/admin/audits", bearer(key), json.dumps(body or {}))


async def ended(site: RunningSite, key: str, run_id: str) -> Any:
    async def is_over() -> bool:
        run = (await site.get(f"/api/admin/audits/{run_id}", key)).json
        return run["status"] in ("done", "failed")

    await until(is_over, 90.0)
    return (await site.get(f"/api/admin/audits/{run_id}", key)).json


async def test_an_audit_is_started_followed_and_names_what_it_finds(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path, projecting=True) as site:
        await site.customer("5")
        key = await admin_key(site)
        begun = await start(site, key)
        assert (begun.status, begun.json["status"], begun.json["ok"]) == (202, "waiting", None)
        assert begun.json["actor"].startswith("person:")
        second = await start(site, key)
        assert (second.status, second.json["code"]) == (409, "conflict")
        auditor = Auditor(site.base, every_s=0.1)
        auditor.start()
        try:
            sound = await ended(site, key, begun.json["id"])
            assert (sound["status"], sound["ok"], sound["error"]) == ("done", True, None)
            assert sound["phase"]
            assert sound["report"]["events"] > 0
            with psycopg.connect(database.superuser_url, autocommit=True) as connection:
                connection.execute(TAMPER)
            again = (await start(site, key)).json
            wrong = await ended(site, key, again["id"])
            assert (wrong["status"], wrong["ok"]) == ("done", False)
            failing = {one["id"] for one in wrong["report"]["checks"] if not one["ok"]}
            assert "states" in failing
            listed = (await site.get("/api/admin/audits", key)).json["audits"]
            assert [run["id"] for run in listed] == [again["id"], begun.json["id"]]
        finally:
            await auditor.stop()


async def test_an_audit_whose_process_dies_is_begun_anew_and_in_the_end_given_up(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        key = await admin_key(site)
        begun = (await start(site, key)).json
        for _ in range(3):
            claimed = await asyncio.gather(*(claim_run(site.base.pool, 60.0) for _ in range(3)))
            assert sum(run is not None for run in claimed) == 1
            with psycopg.connect(database.superuser_url, autocommit=True) as connection:
                connection.execute(LEASE_OUT)
        assert await Auditor(site.base).audit_next()
        over = await ended(site, key, begun["id"])
        assert (over["status"], over["error"]) == ("failed", "It was interrupted too often.")
        assert (await start(site, key)).status == 202


async def test_a_site_that_stops_gives_its_audit_back(database: Database, tmp_path: Path) -> None:
    async with running_site(database, tmp_path) as site:
        key = await admin_key(site)
        begun = (await start(site, key, {"since_seal": True})).json
        auditor = Auditor(site.base, every_s=0.1)
        auditor.start()

        async def is_claimed() -> bool:
            run = (await site.get(f"/api/admin/audits/{begun['id']}", key)).json
            return run["status"] == "running"

        await until(is_claimed)
        await auditor.stop()
        taken = await claim_run(site.base.pool, 60.0)
        assert taken is not None
        assert (str(taken.id), taken.attempt, taken.since_seal) == (begun["id"], 2, True)
