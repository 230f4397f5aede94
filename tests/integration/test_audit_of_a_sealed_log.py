"""Each way to tamper with a sealed log, as a superuser with triggers off: the audit names it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from projections.audit.report import CHAIN, SEALS, STATES
from tests.integration.audited_site import tamper
from tests.integration.sealed_site import (
    SealedSite,
    copied,
    cut_after,
    drop_stream,
    make_sealed_site,
    rewrite_from,
    swap_streams,
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


async def names(site: SealedSite, check: str, stream: str, version: int) -> None:
    report = await site.full()
    assert not report.ok
    failed = next(found for found in report.checks if not found.ok)
    assert failed.first is not None
    assert (failed.id, failed.first.stream, failed.first.version) == (check, stream, version)
    assert report.coverage.checkpoint is None


def changed(site: SealedSite, *statements: str) -> None:
    tamper(site.database.superuser_url, *statements)


ROW = "stream = 'account:1' AND version = 4"


async def test_untouched_it_is_sound(site: SealedSite) -> None:
    report = await site.full()
    assert report.ok, report.first
    assert (report.coverage.kind, report.coverage.unproven) == ("full", ())
    assert report.coverage.events_read == report.events


async def test_a_flipped_payload_byte_is_named(site: SealedSite) -> None:
    changed(site, f"UPDATE event_log SET payload = set_byte(payload, 9, 33) WHERE {ROW}")
    await names(site, CHAIN, "account:1", 4)


async def test_a_deleted_row_is_named(site: SealedSite) -> None:
    changed(site, f"DELETE FROM event_log WHERE {ROW}")
    await names(site, CHAIN, "account:1", 4)


async def test_two_rows_that_changed_places_are_named(site: SealedSite) -> None:
    changed(
        site,
        "UPDATE event_log a SET xid = b.xid, seq = DEFAULT FROM event_log b "
        "WHERE a.stream = 'account:1' AND b.stream = a.stream "
        "AND a.version IN (4, 6) AND b.version = 10 - a.version",
    )
    await names(site, CHAIN, "account:1", 4)


async def test_an_inserted_row_is_named(site: SealedSite) -> None:
    changed(
        site,
        "INSERT INTO event_log (epoch, xid, seq, event_id, command_id, topic, shard, stream, "
        "version, type, schema, at, payload, prev_hash, hash) OVERRIDING SYSTEM VALUE "
        "SELECT epoch, xid, seq - 1, gen_random_uuid(), command_id, topic, shard, stream, 5, type, "
        f"schema, at, payload, hash, sha256('x') FROM event_log WHERE {ROW}",
    )
    await names(site, CHAIN, "account:1", 5)


async def test_a_cut_tail_is_named_although_every_table_agrees(site: SealedSite) -> None:
    cut_after(site.database.superuser_url, "account:1", 14)
    await names(site, SEALS, "account:1", 15)


async def test_a_history_rewritten_with_fitting_hashes_is_named(site: SealedSite) -> None:
    rewrite_from(
        site.database.superuser_url,
        "account:1",
        13,
        lambda p: p.replace(b"relay.chat", b"relay.chat2"),
    )
    await names(site, SEALS, "account:1", 13)


async def test_a_rewritten_history_is_named_from_the_last_sound_seal_on(site: SealedSite) -> None:
    rewrite_from(site.database.superuser_url, "account:1", 16, lambda p: p.replace(b"900", b"901"))
    await names(site, SEALS, "account:1", 13)


async def test_the_rows_of_two_streams_swapped_are_named(site: SealedSite) -> None:
    changed(
        site,
        "UPDATE event_log SET stream = CASE stream WHEN 'account:1' THEN 'account:2' "
        "ELSE 'account:1' END WHERE stream IN ('account:1', 'account:2')",
    )
    # In the log's order, the first row that is wrong now says account:2.
    await names(site, CHAIN, "account:2", 1)


async def test_two_streams_swapped_with_fitting_hashes_are_named(site: SealedSite) -> None:
    swap_streams(site.database.superuser_url, "account:1", "account:2")
    await names(site, SEALS, "account:1", 12)


async def test_a_changed_type_is_named(site: SealedSite) -> None:
    changed(site, f"UPDATE event_log SET type = 'HoldReleased' WHERE {ROW}")
    await names(site, CHAIN, "account:1", 4)


async def test_a_changed_time_is_named(site: SealedSite) -> None:
    changed(site, f"UPDATE event_log SET at = at - interval '1 hour' WHERE {ROW}")
    await names(site, CHAIN, "account:1", 4)


async def test_a_stream_dropped_from_every_table_is_named(site: SealedSite) -> None:
    drop_stream(site.database.superuser_url, "account:1")
    await names(site, SEALS, "account:1", 1)


async def test_a_raised_state_is_named(site: SealedSite) -> None:
    changed(
        site,
        "UPDATE streams SET state = replace(convert_from(state, 'UTF8'), 'issued_upt\":1', "
        "'issued_upt\":9')::bytea WHERE stream = 'account:1'",
    )
    await names(site, STATES, "account:1", 18)
