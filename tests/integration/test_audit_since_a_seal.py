"""Incremental audits: begin at the checkpoint, find what a full one would, say what they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend.folds import ALL_FOLDS
from backend.kit.clock import SystemClock, SystemRandomness
from projections.audit import passing
from projections.audit.checkpoint import CheckpointFile
from projections.audit.report import CHAIN, COMPLETENESS, READ_MODELS, SEALS, STATES
from projections.audit.run import AuditAsked, run_audit
from projections.sealing import TableSealer
from schemas.usage import Usage
from tests.integration.audited_site import audited, make_history, open_site, readable, tamper
from tests.integration.sealed_site import (
    SealedSite,
    copied,
    cut_after,
    drop_stream,
    make_sealed_site,
    rewrite_from,
)


@pytest.fixture(scope="module")
def written(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SealedSite]:
    database = server.fresh()
    yield asyncio.run(make_sealed_site(database, tmp_path_factory.mktemp("sealed")))
    server.drop(database)


@pytest.fixture
def site(server: Any, written: SealedSite, tmp_path: Path) -> Iterator[SealedSite]:
    with copied(server, written, tmp_path / "data") as copy:
        yield copy


async def test_only_what_was_written_since_is_read(site: SealedSite) -> None:
    incremental = await site.since_seal()
    assert incremental.ok, incremental.first
    coverage = incremental.coverage
    assert (coverage.seal, incremental.events - coverage.events_read) == (1, 30)
    assert coverage.unproven != ()
    full = await site.full()
    assert (incremental.events, incremental.streams) == (full.events, full.streams)
    assert (incremental.digest, incremental.position) == (full.digest, full.position)
    assert full.coverage.events_read == full.events


async def test_the_next_one_begins_at_the_newest_seal(site: SealedSite) -> None:
    first = await site.since_seal()
    assert first.coverage.checkpoint is not None
    again = await site.since_seal()
    assert again.ok, again.first
    # The unsealed call at the end is read again, until a seal covers it.
    assert (again.coverage.seal, again.coverage.events_read) == (2, 2)
    assert again.coverage.full_audit_at_us == first.coverage.full_audit_at_us
    await TableSealer(
        site.database.app_url, site.data_dir, SystemClock(), SystemRandomness()
    ).seal_now()
    await site.since_seal()
    last = await site.since_seal()
    assert (last.ok, last.coverage.seal, last.coverage.events_read) == (True, 3, 0)
    assert last.digest == first.digest


async def test_it_stops_and_goes_on_inside_a_page(site: SealedSite) -> None:
    assert (await site.full(page_rows=7)).ok
    assert (await site.since_seal()).ok


async def names(site: SealedSite, check: str, stream: str, version: int) -> None:
    before = (site.data_dir / "audit" / "checkpoint").read_bytes()
    report = await site.since_seal()
    assert not report.ok
    failed = next(found for found in report.checks if not found.ok)
    assert failed.first is not None
    assert (failed.id, failed.first.stream, failed.first.version) == (check, stream, version)
    # What was not sound is nothing to begin at.
    assert report.coverage.checkpoint is None
    assert (site.data_dir / "audit" / "checkpoint").read_bytes() == before


ROW = "WHERE stream = 'account:1' AND version = 14"
OLD = "WHERE stream = 'account:1' AND version = 4"
SINCE = {
    "a payload byte": f"UPDATE event_log SET payload = set_byte(payload, 9, 33) {ROW}",
    "a row deleted": f"DELETE FROM event_log {ROW}",
    "its type": f"UPDATE event_log SET type = 'HoldReleased' {ROW}",
    "its time": f"UPDATE event_log SET at = at - interval '1 hour' {ROW}",
    "its place": "UPDATE event_log a SET xid = b.xid, seq = DEFAULT FROM event_log b "
                 "WHERE a.stream = 'account:1' AND b.stream = a.stream "
                 "AND a.version IN (14, 16) AND b.version = 30 - a.version",
}  # fmt: skip


@pytest.mark.parametrize("what", SINCE)
async def test_what_was_changed_since_the_checkpoint_is_named(site: SealedSite, what: str) -> None:
    tamper(site.database.superuser_url, SINCE[what])
    await names(site, CHAIN, "account:1", 14)


async def test_a_history_rewritten_since_is_named(site: SealedSite) -> None:
    rewrite_from(
        site.database.superuser_url, "account:1", 13, lambda p: p.replace(b"chat", b"chap")
    )
    await names(site, SEALS, "account:1", 13)


async def test_a_raised_state_is_named(site: SealedSite) -> None:
    tamper(
        site.database.superuser_url,
        "UPDATE streams SET state = replace(convert_from(state, 'UTF8'), 'issued_upt\":1', "
        "'issued_upt\":9')::bytea WHERE stream = 'account:1'",
    )
    await names(site, STATES, "account:1", 18)


async def test_a_raised_state_of_an_account_at_rest_is_named(site: SealedSite) -> None:
    await site.since_seal()
    tamper(
        site.database.superuser_url,
        "UPDATE streams SET state = replace(convert_from(state, 'UTF8'), 'issued_upt\":', "
        "'issued_upt\":1')::bytea WHERE stream = 'account:2'",
    )
    await names(site, STATES, "account:2", 11)


async def test_a_tail_cut_since_is_named(site: SealedSite) -> None:
    cut_after(site.database.superuser_url, "account:1", 14)
    await names(site, SEALS, "account:1", 15)


async def test_a_tail_cut_into_what_was_audited_is_named(site: SealedSite) -> None:
    cut_after(site.database.superuser_url, "account:1", 9)
    await names(site, CHAIN, "account:1", 10)


async def test_a_dropped_stream_is_named(site: SealedSite) -> None:
    drop_stream(site.database.superuser_url, "account:1")
    await names(site, CHAIN, "account:1", 1)


async def test_a_stream_dropped_since_is_named(site: SealedSite) -> None:
    drop_stream(site.database.superuser_url, "account:3")
    await names(site, SEALS, "account:3", 1)


async def test_an_old_row_deleted_is_named(site: SealedSite) -> None:
    tamper(site.database.superuser_url, f"DELETE FROM event_log {OLD}")
    await names(site, CHAIN, "account:1", 4)


async def test_an_old_row_inserted_is_named(site: SealedSite) -> None:
    tamper(
        site.database.superuser_url,
        "INSERT INTO event_log (epoch, xid, seq, event_id, command_id, topic, shard, stream, "
        "version, type, schema, at, payload, prev_hash, hash) OVERRIDING SYSTEM VALUE "
        "SELECT epoch, xid, seq, event_id, command_id, topic, shard, stream, version, type, "
        f"schema, at, payload, prev_hash, hash FROM event_log {OLD}",
    )
    await names(site, CHAIN, "account:1", 4)


async def test_an_old_history_rewritten_with_fitting_hashes_is_found(site: SealedSite) -> None:
    rewrite_from(site.database.superuser_url, "account:1", 3, lambda p: p.replace(b"chat", b"chap"))
    await names(site, CHAIN, "account:1", 12)


BESIDE = {
    "a balance at rest": (
        "UPDATE read.balance SET available_upt = 0, posted_upt = 1 WHERE stream = 'account:2'",
        READ_MODELS, "account:2", 11,
    ),
    "a line of the statement": (
        f"UPDATE read.statement SET amount_upt = amount_upt - 1 {OLD}",
        READ_MODELS, "account:1", 4,
    ),
    "a lease": ("DELETE FROM leases WHERE stream = 'account:2'", COMPLETENESS, "account:2", 11),
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
async def test_what_the_tables_say_otherwise_is_named(site: SealedSite, what: str) -> None:
    statement, check, stream, version = BESIDE[what]
    tamper(site.database.superuser_url, statement)
    await names(site, check, stream, version)


async def test_an_old_byte_is_for_the_full_audit_as_the_report_says(site: SealedSite) -> None:
    tamper(
        site.database.superuser_url, f"UPDATE event_log SET payload = payload || ' '::bytea {OLD}"
    )
    incremental = await site.since_seal()
    assert incremental.ok
    assert "only a full audit hashes them again" in incremental.coverage.unproven[0]
    full = await site.full()
    assert full.first is not None
    assert (full.first.stream, full.first.version) == ("account:1", 4)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _unlink(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


DAMAGED = {
    "missing": (_unlink("audit/checkpoint"), "there is no checkpoint"),
    "flipped": (lambda folder: _flip(folder / "audit" / "checkpoint"), "is damaged"),
    "empty": (lambda folder: (folder / "audit" / "checkpoint").write_bytes(b""), "is damaged"),
    "without its key": (_unlink("audit/audit.key"), "is damaged, or not this auditor's"),
    "without its seal": (_unlink("seals/000000000001.json"), "seal 1 is not the one"),
}


@pytest.mark.parametrize("what", DAMAGED)
async def test_without_its_checkpoint_it_reads_all_and_says_so(site: SealedSite, what: str) -> None:
    damage, reason = DAMAGED[what]
    damage(site.data_dir)
    notes: list[str] = []
    asked = AuditAsked(site.database.app_url, site.data_dir, since_seal=True)
    report = await run_audit(asked, ALL_FOLDS, note=notes.append)
    assert report.coverage.fell_back is not None
    assert reason in report.coverage.fell_back
    assert notes[0].endswith("everything is read")
    assert (report.coverage.kind, report.coverage.events_read) == ("full", report.events)
    assert report.ok is (what != "without its seal")


async def test_states_of_another_version_of_the_software_are_not_taken_up(
    site: SealedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "SOFTWARE", "0.0.0")
    report = await site.full(since_seal=True)
    assert report.ok
    assert report.coverage.fell_back == "another version of Suanpan made the checkpoint"


async def test_a_log_that_was_recovered_is_read_whole(site: SealedSite) -> None:
    tamper(site.database.superuser_url, "UPDATE site SET epoch = epoch + 1")
    report = await site.full(since_seal=True)
    assert report.coverage.fell_back == "the log was restored or recovered since the checkpoint"


async def test_heads_that_do_not_give_the_seals_root_are_named(site: SealedSite) -> None:
    kept = CheckpointFile(site.data_dir, SystemRandomness())
    made = kept.load()
    forged = msgspec.structs.replace(made, streams=made.streams[1:])
    kept.save(forged)
    report = await site.since_seal()
    assert not next(check for check in report.checks if check.id == SEALS).ok


async def test_without_a_seal_no_checkpoint_is_kept(database: Any, tmp_path: Path) -> None:
    await make_history(database.app_url)
    report = await audited(database.app_url, tmp_path)
    assert (report.ok, report.coverage.checkpoint) == (True, None)
    assert not (tmp_path / "audit").exists()


async def test_a_site_that_is_written_to_meanwhile_is_sound(site: SealedSite) -> None:
    url = site.database.app_url
    sealer = TableSealer(url, site.data_dir, SystemClock(), SystemRandomness())
    async with open_site(url) as live:
        stop = asyncio.Event()

        async def write() -> int:
            calls = 0
            while not stop.is_set() and calls < 1_500:
                request = await live.hold(1)
                await live.settle(1, request, Usage(input=1, output=1))
                calls += 1
            return calls

        writing = asyncio.create_task(write())
        try:
            for _ in range(5):
                report = await site.full(since_seal=True, page_rows=20)
                assert report.ok, report.first
                assert report.coverage.kind == "since-seal"
                await sealer.seal_now()
        finally:
            stop.set()
            assert await writing > 0
    await readable(url)
    full = await site.full()
    assert full.ok, full.first
    assert (await site.since_seal()).digest == full.digest
