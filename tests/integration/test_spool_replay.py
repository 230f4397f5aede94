"""What Postgres could not take waits on disk and is charged once, however often it is replayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import backend.ledger.points as points_module
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.postgres import connect, make_pool
from backend.ledger.points import Points
from backend.ledger.spool import Spool
from schemas.errors import Unavailable
from schemas.ids import RequestId
from schemas.ledger import HoldSettled
from tests.conftest import Database
from tests.given import (
    CLOCK,
    FOLDS,
    POINT,
    RANDOMNESS,
    hold_asked,
    new_id,
    new_request,
    settle_asked,
)
from tests.integration.ledger_site import LedgerSite, ledger_on

NOWHERE = "postgresql://nobody:nothing@127.0.0.1:1/none"
READ_ONLY = "UPDATE site SET read_only_reason = %s"


async def held(ledger: LedgerSite, account: str) -> RequestId:
    request = new_request()
    await ledger.points.hold(account, hold_asked(request), new_id())
    return request


async def spooled(ledger: LedgerSite, account: str, spool: Spool, count: int) -> list[RequestId]:
    requests = [await held(ledger, account) for _ in range(count)]
    for request in requests:
        await spool.put(account, settle_asked(request))
    assert spool.waiting() == count
    return requests


async def settled(ledger: LedgerSite, account: str) -> list[RequestId]:
    events = await ledger.events(account)
    return [event.request_id for event in events if isinstance(event, HoldSettled)]


async def test_a_settle_that_postgres_never_answered_is_charged_when_it_is_back(
    ledger: LedgerSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points_module, "SETTLE_TIMEOUT_S", 0.5)
    account, spool = await ledger.open_account(1, 10), Spool(tmp_path / "spool")
    request = await held(ledger, account)
    asked = settle_asked(request)
    async with points_without_postgres() as points:
        with pytest.raises(Unavailable):
            await points.settle(account, asked)
        await spool.put(account, asked)
        assert await spool.replay(points) == 0
    assert spool.waiting() == 1
    assert await spool.replay(ledger.points) == 1
    assert await settled(ledger, account) == [request]
    assert (spool.waiting(), await spool.replay(ledger.points)) == (0, 0)


@asynccontextmanager
async def points_without_postgres() -> AsyncGenerator[Points]:
    writer = Writer(NOWHERE, FOLDS, CLOCK, RANDOMNESS, LogWatch(NOWHERE))
    writer.start()
    yield Points(writer, make_pool(NOWHERE, application="test", size_max=1))
    await writer.stop()


async def test_a_settlement_replayed_twice_and_side_by_side_lands_once(
    ledger: LedgerSite, database: Database, tmp_path: Path
) -> None:
    """Two spools on one folder are two processes of one data folder; the third has a copy."""
    account = await ledger.open_account(1, 100)
    spools = [Spool(tmp_path / "spool"), Spool(tmp_path / "spool"), Spool(tmp_path / "copy")]
    requests = await spooled(ledger, account, spools[0], 12)
    for request in requests:
        await spools[2].put(account, settle_asked(request))
    async with ledger_on(database.app_url) as other:
        await asyncio.gather(
            spools[0].replay(ledger.points),
            spools[1].replay(other.points),
            spools[2].replay(other.points),
        )
    assert sorted(await settled(ledger, account)) == sorted(requests)
    assert [spool.waiting() for spool in spools] == [0, 0, 0]
    assert (await ledger.state(account)).charged_upt == 12 * POINT


async def test_a_settlement_that_landed_before_it_was_spooled_is_not_charged_again(
    ledger: LedgerSite, tmp_path: Path
) -> None:
    """The answer came too late, the settle did not."""
    account, spool = await ledger.open_account(1, 10), Spool(tmp_path / "spool")
    (request,) = await spooled(ledger, account, spool, 1)
    await ledger.points.settle(account, settle_asked(request))
    assert await spool.replay(ledger.points) == 1
    assert await settled(ledger, account) == [request]


async def test_a_damaged_file_is_put_aside_and_the_others_land(
    ledger: LedgerSite, tmp_path: Path
) -> None:
    account, spool = await ledger.open_account(1, 10), Spool(tmp_path / "spool")
    requests = await spooled(ledger, account, spool, 2)
    torn = tmp_path / "spool" / "00000000.json"
    torn.write_bytes(b'{"account":"account:1","asked":')
    assert await spool.replay(ledger.points) == 2
    assert sorted(await settled(ledger, account)) == sorted(requests)
    assert not torn.exists()
    assert torn.with_suffix(".damaged").exists()
    assert spool.waiting() == 0


async def test_one_that_cannot_be_settled_does_not_keep_the_others(
    ledger: LedgerSite, tmp_path: Path
) -> None:
    """PostgreSQL refuses its account's name; it waits, last in turn."""
    account, spool = await ledger.open_account(1, 10), Spool(tmp_path / "spool")
    stuck = RequestId("00000000-0000-7000-8000-000000000000")
    await spool.put("account:\x00", settle_asked(stuck))
    requests = [await held(ledger, account) for _ in range(3)]
    for request in requests:
        await spool.put(account, settle_asked(request))
    landed = 0
    for _ in range(3):
        landed += await spool.replay(ledger.points)
    assert landed == 3
    assert sorted(await settled(ledger, account)) == sorted(requests)
    assert spool.waiting() == 1


async def test_a_read_only_site_keeps_the_spool(
    ledger: LedgerSite, database: Database, tmp_path: Path
) -> None:
    account, spool = await ledger.open_account(1, 10), Spool(tmp_path / "spool")
    await spooled(ledger, account, spool, 2)
    async with await connect(database.owner_url, application="test") as connection:
        await connection.execute(READ_ONLY, ("being restored",))
        assert await spool.replay(ledger.points) == 0
        assert spool.waiting() == 2
        await connection.execute(READ_ONLY, (None,))
    assert await spool.replay(ledger.points) == 2


async def test_files_are_private_whole_and_leave_nothing_half_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    request = new_request()
    await asyncio.gather(*(spool.put("account:1", settle_asked(request)) for _ in range(5)))
    (file,) = (tmp_path / "spool").iterdir()
    assert file.name == f"{request}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


async def test_a_settlement_written_whole_but_not_yet_named_is_owed(
    ledger: LedgerSite, tmp_path: Path
) -> None:
    account = await ledger.open_account(1, 10)
    request = await held(ledger, account)
    folder = tmp_path / "spool"
    await Spool(folder).put(account, settle_asked(request))
    named = folder / f"{request}.json"
    named.rename(folder / f".{request}.json.k1ll3d")
    (folder / ".torn.json.k1ll3d").write_bytes(b'{"account":"acc')
    spool = Spool(folder)
    assert named.exists()
    assert await spool.replay(ledger.points) == 1
    assert spool.waiting() == 0


async def test_a_draft_that_another_process_names_meanwhile_does_not_stop_a_start(
    ledger: LedgerSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await ledger.open_account(1, 10)
    request = await held(ledger, account)
    folder = tmp_path / "spool"
    spool = Spool(folder)
    await spool.put(account, settle_asked(request))
    named = folder / f"{request}.json"
    draft = named.rename(folder / f".{request}.json.0ther")
    read = Path.read_bytes

    def named_and_settled_after_the_read(path: Path) -> bytes:
        data = read(path)
        draft.unlink(missing_ok=True)
        return data

    monkeypatch.setattr(Path, "read_bytes", named_and_settled_after_the_read)
    assert Spool(folder).waiting() == 0
