"""An audit of a site that nobody touched finds nothing, whatever happened there."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from backend.folds import ALL_FOLDS
from projections.audit.report import CHECKS
from projections.audit.run import AuditAsked, run_audit
from projections.replay import replay_table
from schemas.usage import Usage
from tests.integration.audited_site import audited, make_history, open_site, project


async def test_a_history_of_every_event_is_sound(database: Any) -> None:
    await make_history(database.app_url)
    report = await audited(database.app_url)
    assert [check for check in report.checks if not check.ok] == []
    assert report.ok
    assert (report.events, report.streams) == (28, 9)


async def test_an_empty_site_is_sound(database: Any) -> None:
    report = await audited(database.app_url)
    assert (report.ok, report.events, report.streams) == (True, 0, 0)


async def test_the_report_has_the_shape_that_scripts_expect(database: Any) -> None:
    await make_history(database.app_url)
    report = msgspec.json.decode(msgspec.json.encode(await audited(database.app_url)))
    assert list(report) == ["ok", "events", "streams", "checks", "digest", "position", "coverage"]
    assert [check["id"] for check in report["checks"]] == list(CHECKS)
    assert report["checks"][0] == {"id": "chain", "ok": True, "violations": 0, "first": None}
    assert set(report["position"]) == {"epoch", "xid", "seq"}
    assert len(bytes.fromhex(report["digest"])) == 32


async def test_the_digest_is_the_replays(database: Any) -> None:
    await make_history(database.app_url)
    report = await audited(database.app_url)
    replayed = await replay_table(database.app_url, ALL_FOLDS)
    assert (replayed.digest, replayed.position) == (report.digest, report.position)


async def test_read_models_that_were_projected_are_sound(database: Any) -> None:
    await make_history(database.app_url)
    await project(database.app_url)
    notes: list[str] = []
    report = await run_audit(AuditAsked(database.app_url), ALL_FOLDS, note=notes.append)
    assert report.ok, report.first
    assert notes == []


async def test_what_is_not_there_to_compare_is_said(database: Any) -> None:
    notes: list[str] = []
    report = await run_audit(AuditAsked(database.app_url), ALL_FOLDS, note=notes.append)
    assert report.ok
    assert "there is no table read.balance yet: not compared" in notes


async def test_progress_reaches_its_end(database: Any) -> None:
    await make_history(database.app_url)
    seen: dict[str, tuple[int, int]] = {}

    def progress(phase: str, done: int, total: int) -> None:
        seen[phase] = (done, total)

    await run_audit(AuditAsked(database.app_url, page_rows=5), ALL_FOLDS, progress=progress)
    assert seen["fold"][0] == 28
    assert seen["states"] == (9, 9)


CALLS_MAX = 1_500
"""A log that grew without end would be read by small pages without end."""


async def test_a_site_that_is_written_to_meanwhile_is_sound(database: Any) -> None:
    await make_history(database.app_url)
    async with open_site(database.app_url) as site:
        stop = asyncio.Event()

        async def write() -> int:
            calls = 0
            while not stop.is_set() and calls < CALLS_MAX:
                request = await site.hold(1)
                await site.settle(1, request, Usage(input=1, output=1))
                calls += 1
            return calls

        writing = asyncio.create_task(write())
        try:
            for _ in range(5):
                asked = AuditAsked(database.app_url, page_rows=20)
                report = await run_audit(asked, ALL_FOLDS)
                assert report.ok, report.first
                replayed = await replay_table(database.app_url, ALL_FOLDS, page_rows=20)
                assert replayed.differences == ()
        finally:
            stop.set()
            assert await writing > 0
