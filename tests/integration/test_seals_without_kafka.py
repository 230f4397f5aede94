"""Seals of a site without Kafka: made when the log grew, chained, and held against the log."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend.kit.clock import SystemClock, SystemRandomness
from projections.audit.report import SEALS
from projections.sealed_files import HEADS_FILE, SealFolder
from projections.sealing import TableSealer
from schemas.errors import SiteProblem
from schemas.usage import Usage
from tests.integration.audited_site import (
    audited,
    make_history,
    open_site,
    readable,
    tamper,
)
from tests.integration.log_writing import until


def sealer(url: str, data_dir: Path, every_s: float = 60.0) -> TableSealer:
    return TableSealer(url, data_dir, SystemClock(), SystemRandomness(), every_s=every_s)


async def one_more_call(url: str) -> None:
    async with open_site(url) as site:
        await site.settle(1, await site.hold(1), Usage(input=1, output=1))
    await readable(url)


async def first_of(report: Any) -> tuple[str, int]:
    failed = [check for check in report.checks if not check.ok]
    assert [check.id for check in failed] == [SEALS]
    assert failed[0].first is not None
    return failed[0].first.stream, failed[0].first.version


@pytest.fixture
async def sealed(database: Any, tmp_path: Path) -> Any:
    """A history under three seals."""
    await make_history(database.app_url)
    made = sealer(database.app_url, tmp_path)
    for _ in range(3):
        assert await made.seal_now() is not None
        await one_more_call(database.app_url)
    return database


async def test_seals_are_made_when_the_log_grew_and_only_then(
    database: Any, tmp_path: Path
) -> None:
    made = sealer(database.app_url, tmp_path)
    assert await made.seal_now() is None
    await make_history(database.app_url)
    first = await made.seal_now()
    assert first is not None
    assert (first.number, first.events, first.streams) == (1, 28, 9)
    assert await made.seal_now() is None
    await one_more_call(database.app_url)
    second = await made.seal_now()
    assert second is not None
    assert (second.number, second.events) == (2, 30)
    assert made.health().alarms == ()
    assert SealFolder(tmp_path).numbers() == [1, 2]
    report = await audited(database.app_url, tmp_path)
    assert report.ok, report.first


async def test_sealing_goes_on_by_itself_while_the_site_runs(database: Any, tmp_path: Path) -> None:
    made = sealer(database.app_url, tmp_path, every_s=0.05)
    made.start()
    try:
        await make_history(database.app_url)

        async def all_sealed() -> bool:
            return made.health().events == 28 and len(SealFolder(tmp_path).numbers()) > 0

        await until(all_sealed, what="the log is sealed")
    finally:
        await made.stop()
    assert (await audited(database.app_url, tmp_path)).ok


async def test_two_sealers_of_one_site_make_one_chain(database: Any, tmp_path: Path) -> None:
    """As when `suanpan seal` is called beside `serve`."""
    serving, called = sealer(database.app_url, tmp_path), sealer(database.app_url, tmp_path)
    await make_history(database.app_url)
    for number, one in enumerate((serving, called, serving, serving, called), 1):
        made = await one.seal_now()
        assert made is not None
        assert made.number == number
        assert await serving.seal_now() is None
        await one_more_call(database.app_url)
    assert serving.health().alarms == called.health().alarms == ()
    assert (await audited(database.app_url, tmp_path)).ok


async def test_of_two_sealers_at_the_same_moment_one_makes_the_seal(
    sealed: Any, tmp_path: Path
) -> None:
    folder = SealFolder(tmp_path)
    before = folder.read(3)
    with pytest.raises(SiteProblem, match="another process seals this site"):
        folder.write(msgspec.structs.replace(before, events=99))
    assert folder.read(3) == before
    assert {path.suffix for path in (tmp_path / "seals").iterdir()} == {".json"}


async def test_the_key_and_the_seals_are_the_owners_alone(sealed: Any, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "seal.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "seals").stat().st_mode) == 0o700


async def test_after_a_restart_it_goes_on_from_the_saved_heads(sealed: Any, tmp_path: Path) -> None:
    again = sealer(sealed.app_url, tmp_path)
    fourth = await again.seal_now()
    assert fourth is not None
    assert (fourth.number, fourth.events, fourth.streams) == (4, 34, 9)
    (tmp_path / "seals" / HEADS_FILE).unlink()
    await one_more_call(sealed.app_url)
    from_the_start = sealer(sealed.app_url, tmp_path)
    fifth = await from_the_start.seal_now()
    assert fifth is not None
    assert (fifth.number, fifth.events) == (5, 36)
    assert (await audited(sealed.app_url, tmp_path)).ok


async def test_forged_saved_heads_are_not_used(sealed: Any, tmp_path: Path) -> None:
    path = tmp_path / "seals" / HEADS_FILE
    path.write_bytes(path.read_bytes().replace(b'"account:1",16', b'"account:1",15'))
    again = sealer(sealed.app_url, tmp_path)
    assert await again.seal_now() is not None
    assert again.health().alarms == ()
    assert (await audited(sealed.app_url, tmp_path)).ok


CUT_CONSISTENTLY = (
    "DELETE FROM event_log WHERE stream = 'account:1' AND version > 12",
    "DELETE FROM commands WHERE stream = 'account:1' AND version > 12",
    (
        "UPDATE streams s SET version = 12, hash = e.hash, last_xid = e.xid, state = "
        "(SELECT state FROM kept) FROM event_log e WHERE s.stream = 'account:1' "
        "AND e.stream = s.stream AND e.version = 12"
    ),
)


async def test_a_tail_cut_from_log_and_streams_alike_is_caught_by_a_seal(
    database: Any, tmp_path: Path
) -> None:
    await make_history(database.app_url)
    tamper(
        database.superuser_url,
        "CREATE TABLE kept AS SELECT state FROM streams WHERE stream = 'account:1'",
    )
    await one_more_call(database.app_url)
    assert await sealer(database.app_url, tmp_path).seal_now() is not None
    tamper(database.superuser_url, *CUT_CONSISTENTLY)
    without_seals = await audited(database.app_url)
    assert without_seals.ok, without_seals.first
    assert await first_of(await audited(database.app_url, tmp_path)) == ("account:1", 13)
    (tmp_path / "seals" / HEADS_FILE).unlink()
    assert await first_of(await audited(database.app_url, tmp_path)) == ("seals", 1)


async def test_nothing_is_sealed_over_a_log_that_was_cut(database: Any, tmp_path: Path) -> None:
    await make_history(database.app_url)
    tamper(
        database.superuser_url,
        "CREATE TABLE kept AS SELECT state FROM streams WHERE stream = 'account:1'",
    )
    await one_more_call(database.app_url)
    assert await sealer(database.app_url, tmp_path).seal_now() is not None
    tamper(database.superuser_url, *CUT_CONSISTENTLY)
    (tmp_path / "seals" / HEADS_FILE).unlink()
    again = sealer(database.app_url, tmp_path)
    assert await again.seal_now() is None
    assert len(again.health().alarms) == 1
    assert SealFolder(tmp_path).numbers() == [1]


async def test_nothing_is_sealed_over_a_broken_chain(sealed: Any, tmp_path: Path) -> None:
    tamper(
        sealed.superuser_url,
        "UPDATE event_log SET payload = payload || ' '::bytea "
        "WHERE stream = 'account:1' AND version = 18",
    )
    again = sealer(sealed.app_url, tmp_path)
    assert await again.seal_now() is None
    assert again.health().alarms == ("account:1 18: its hash is not that of its bytes",)


@pytest.mark.parametrize("what", ["a byte changed", "one removed", "the first removed", "not JSON"])
async def test_a_seal_that_was_tampered_with_is_named(
    sealed: Any, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "seals"
    match what:
        case "a byte changed":
            path = folder / "000000000002.json"
            path.write_bytes(path.read_bytes().replace(b'"events":30', b'"events":31'))
            expected = 2
        case "one removed":
            (folder / "000000000002.json").unlink()
            expected = 2
        case "the first removed":
            (folder / "000000000001.json").unlink()
            expected = 1
        case _:
            (folder / "000000000003.json").write_bytes(b"{")
            expected = 3
    assert await first_of(await audited(sealed.app_url, tmp_path)) == ("seals", expected)


async def test_seals_of_another_log_are_named(sealed: Any, server: Any, tmp_path: Path) -> None:
    other = server.fresh()
    try:
        # Databases of these tests are copies of one, and so are their sites.
        tamper(other.superuser_url, "UPDATE site SET site_id = gen_random_uuid()")
        await make_history(other.app_url)
        assert await first_of(await audited(other.app_url, tmp_path)) == ("seals", 1)
    finally:
        server.drop(other)
