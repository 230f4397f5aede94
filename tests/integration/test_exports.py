"""Exports as jobs: claimed by a lease, whole or not there, taken over, removed in time."""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psutil
import psycopg
import pytest

from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import Pool
from backend.ledger.exports import (
    UNFINISHED_MAX,
    Export,
    ExportFolder,
    ExportFormat,
    ExportKind,
    add_export,
    claim_export,
    erase_exports,
    find_export,
    list_exports,
    remove_export,
    sweep_exports,
)
from backend.ledger.record_filters import RecordQuery
from backend.ledger.record_texts import Movement
from projections.tables import ensure_tables
from schemas.errors import BadRequest, Conflict, NotFound
from schemas.ids import PersonId
from tests.integration.projection_ground import feed, open_pool, until
from tests.projection_log import History
from tests.site import ROOT
from workers.exporting import Exporter

CLOCK = SystemClock()
ANNA, BERT, ROOT_PERSON = PersonId(1), PersonId(2), PersonId(9)
MANY = 200_000
FILL = b"""
INSERT INTO read.statement (stream, version, kind, amount_upt, balance_upt, at_us, event_id,
    command_id, shard, request_id, model, price_model, price_version, basis, swept, key, channel)
SELECT 'account:1', n, 'settle', -1500, 1000000000000 - n * 1500, 1700000000000000 + n,
    gen_random_uuid(), gen_random_uuid(), 3, gen_random_uuid(),
    CASE WHEN mod(n, 1000) = 0 THEN '=1+1' ELSE 'gpt-model' END, 'gpt-model', 3, 'reported',
    false, 7, 8
FROM generate_series(1, %(rows)s::bigint) n
"""
EXPIRE = b"UPDATE exports SET expires_at = clock_timestamp() - interval '1 second'"
LEASE_OUT = b"UPDATE exports SET lease_until = clock_timestamp() - interval '1 second'"
SLOW_EXPORTER = """
import asyncio, sys
from pathlib import Path
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import make_pool
from workers.exporting import Exporter

async def fresh(export):
    return True

async def main():
    async with make_pool(sys.argv[1], application="exporter", size_max=2) as pool:
        exporter = Exporter(pool, Path(sys.argv[2]), SystemClock(), SystemRandomness(), fresh,
            lease_s=2.0, page_rows=200, rest_factor=40.0)
        await exporter.export_next()

asyncio.run(main())
"""


@pytest.fixture
async def pool(database: Any) -> AsyncIterator[Pool]:
    async with open_pool(database.app_url) as pool:
        await ensure_tables(pool)
        yield pool


async def yes(export: Export) -> bool:
    return True


def exporter(pool: Pool, data_dir: Path, **more: Any) -> Exporter:
    given: dict[str, Any] = {"rest_factor": 0.0, "page_rows": 1_000, **more}
    return Exporter(pool, data_dir, CLOCK, SystemRandomness(), yes, **given)


async def ask(
    pool: Pool,
    number: int = 1,
    *,
    owner: PersonId = ANNA,
    person: PersonId | None = ANNA,
    kind: ExportKind = ExportKind.STATEMENT,
    shape: ExportFormat = ExportFormat.CSV,
    filters: RecordQuery | None = None,
) -> UUID:
    export_id = UUID(int=number)
    now_us = CLOCK.now_us()
    await add_export(pool, export_id, owner, person, kind, shape, filters or RecordQuery(), now_us)
    return export_id


async def found(pool: Pool, export_id: UUID, owner: PersonId = ANNA) -> Export:
    async with pool.connection() as connection:
        return await find_export(connection, export_id, owner)


def run_sql(database: Any, text: bytes, **arguments: Any) -> None:
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute(text, arguments or None)


async def test_an_export_is_made_whole_and_named_when_it_is_done(
    pool: Pool, tmp_path: Path
) -> None:
    history = History(2)
    await feed(pool, history.everything(accounts=2, steps=150))
    first = await ask(pool, 1)
    second = await ask(pool, 2, shape=ExportFormat.JSONL)
    assert (await found(pool, first)).status == "waiting"
    worker = exporter(pool, tmp_path, page_rows=20)
    assert await worker.export_next()
    assert await worker.export_next()
    assert not await worker.export_next()
    done, folder = await found(pool, first), ExportFolder(tmp_path)
    file = folder.file(done)
    assert (done.status, done.stale, done.bytes) == ("done", False, file.stat().st_size)
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert tuple(rows[0]) == Movement.__struct_fields__
    assert len(rows) == done.rows > 30
    balance_upt = history.states["account:1"].posted_upt
    assert round(float(rows[-1]["balance"]) * 10**6) == balance_upt
    lines = folder.file(await found(pool, second)).read_bytes().splitlines()
    decoded = [msgspec.json.decode(line, type=Movement) for line in lines]
    assert [line.version for line in decoded] == [int(row["version"]) for row in rows]
    assert sorted(path.name for path in folder.folder.iterdir()) == sorted(
        (f"{first}.csv", f"{second}.jsonl")
    )


async def test_what_is_recorded_after_the_asking_is_not_in_the_file(
    pool: Pool, tmp_path: Path
) -> None:
    history = History(2)
    history.now_us = CLOCK.now_us() - 60_000_000
    stream = history.open(1)
    await feed(pool, history.rows)
    export_id = await ask(pool)
    history.now_us = CLOCK.now_us() + 1_000_000
    await feed(pool, [history.gift(stream)])
    await exporter(pool, tmp_path).export_next()
    done = await found(pool, export_id)
    assert (done.rows, done.filters.until is not None) == (1, True)


async def test_a_large_export_takes_bounded_memory(
    database: Any, pool: Pool, tmp_path: Path
) -> None:
    run_sql(database, FILL, rows=MANY)
    export_id = await ask(pool)
    own = psutil.Process()
    before = peak = own.memory_info().rss
    making = asyncio.create_task(exporter(pool, tmp_path).export_next())
    while not making.done():
        await asyncio.sleep(0.02)
        peak = max(peak, own.memory_info().rss)
    assert await making
    done = await found(pool, export_id)
    assert (done.status, done.rows) == ("done", MANY)
    assert done.bytes > 40 * 1024 * 1024
    grown_mib = (peak - before) / 1024**2
    print(f"{MANY} rows, {done.bytes / 1024**2:.0f} MiB: memory grew by {grown_mib:.1f} MiB")
    assert grown_mib < 24
    with ExportFolder(tmp_path).file(done).open(newline="") as text:
        last, escaped = None, 0
        for last in csv.DictReader(text):
            escaped += last["model"] == "'=1+1"
    assert last is not None
    assert (last["version"], last["amount"], escaped) == (str(MANY), "-0.0015", MANY // 1_000)


async def test_a_killed_workers_export_is_taken_over_and_starts_anew(
    database: Any, pool: Pool, tmp_path: Path
) -> None:
    run_sql(database, FILL, rows=20_000)
    export_id = await ask(pool)
    folder = ExportFolder(tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLOW_EXPORTER, database.app_url, str(tmp_path),
        cwd=ROOT, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    async def is_under_way() -> bool:
        return (await found(pool, export_id)).rows > 0

    try:
        await until(is_under_way)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
    assert (await found(pool, export_id)).status == "running"
    left = [path.name for path in folder.folder.iterdir()]
    assert left == [f"{export_id}.1.part"]
    taking = exporter(pool, tmp_path)

    async def is_taken_over() -> bool:
        return await taking.export_next()

    await until(is_taken_over)
    done = await found(pool, export_id)
    assert (done.status, done.attempt, done.rows) == ("done", 2, 20_000)
    assert len(folder.file(done).read_bytes().splitlines()) == 20_001
    await sweep_exports(pool, folder)
    assert [path.name for path in folder.folder.iterdir()] == [f"{export_id}.csv"]


async def test_a_worker_that_has_lost_its_lease_publishes_nothing(
    database: Any, pool: Pool, tmp_path: Path
) -> None:
    run_sql(database, FILL, rows=3_000)
    export_id = await ask(pool)

    async def meanwhile(export: Export) -> bool:
        run_sql(database, LEASE_OUT)
        assert await claim_export(pool, 60.0) is not None
        return True

    slow = Exporter(pool, tmp_path, CLOCK, SystemRandomness(), meanwhile, rest_factor=0.0)
    assert await slow.export_next()
    now = await found(pool, export_id)
    assert (now.status, now.attempt, slow.finished) == ("running", 2, 0)
    assert list(ExportFolder(tmp_path).folder.iterdir()) == []


async def test_two_workers_never_claim_one_export(pool: Pool) -> None:
    await ask(pool)
    claims = await asyncio.gather(*(claim_export(pool, 60.0) for _ in range(6)))
    assert sum(claim is not None for claim in claims) == 1


async def test_an_export_that_dies_again_and_again_is_given_up(
    database: Any, pool: Pool, tmp_path: Path
) -> None:
    export_id = await ask(pool)
    for _ in range(5):
        assert await claim_export(pool, 60.0) is not None
        run_sql(database, LEASE_OUT)
    await exporter(pool, tmp_path).export_next()
    given_up = await found(pool, export_id)
    assert (given_up.status, given_up.error) == ("failed", "It was interrupted too often.")


async def test_a_disk_that_takes_nothing_fails_the_export_and_not_the_worker(
    pool: Pool, tmp_path: Path
) -> None:
    (tmp_path / "objects").write_text("in the way")
    export_id = await ask(pool)
    assert await exporter(pool, tmp_path).export_next()
    failed = await found(pool, export_id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert str(tmp_path) not in failed.error


async def test_an_export_says_that_the_newest_records_were_on_their_way(
    pool: Pool, tmp_path: Path
) -> None:
    async def no(export: Export) -> bool:
        return False

    export_id = await ask(pool)
    await Exporter(pool, tmp_path, CLOCK, SystemRandomness(), no).export_next()
    assert (await found(pool, export_id)).stale


async def test_wrong_filters_and_too_many_exports_are_refused(pool: Pool) -> None:
    with pytest.raises(BadRequest):
        await ask(pool, filters=RecordQuery(outcome="settled"))
    for number in range(UNFINISHED_MAX):
        await ask(pool, number + 1)
    with pytest.raises(Conflict, match="at once"):
        await ask(pool, 50)
    await ask(pool, 51, owner=BERT, person=BERT)


async def test_an_export_is_its_owners_alone(pool: Pool, tmp_path: Path) -> None:
    own = await ask(pool, 1)
    operators = await ask(pool, 2, owner=ROOT_PERSON, person=None)
    folder = ExportFolder(tmp_path)
    async with pool.connection() as connection:
        for owner, person in ((BERT, BERT), (ROOT_PERSON, ROOT_PERSON)):
            with pytest.raises(NotFound):
                await find_export(connection, own, owner, person)
        # A key of the operator's own wallet does not reach what the operator asked for.
        with pytest.raises(NotFound):
            await find_export(connection, operators, ROOT_PERSON, ROOT_PERSON)
        assert await list_exports(connection, ROOT_PERSON, ROOT_PERSON) == []
        assert [one.id for one in await list_exports(connection, ROOT_PERSON)] == [operators]
    with pytest.raises(NotFound):
        await remove_export(pool, folder, own, BERT)
    await remove_export(pool, folder, own, ANNA, ANNA)
    with pytest.raises(NotFound):
        await found(pool, own)


async def test_expired_exports_go_with_their_files_and_strays_go_too(
    database: Any, pool: Pool, tmp_path: Path
) -> None:
    export_id = await ask(pool)
    worker, folder = exporter(pool, tmp_path), ExportFolder(tmp_path)
    await worker.export_next()
    stray = folder.folder / f"{UUID(int=77)}.jsonl"
    stray.write_text("of a job that is gone")
    other = folder.folder / "README"
    other.write_text("not ours")
    await sweep_exports(pool, folder)
    assert folder.file(await found(pool, export_id)).exists()
    assert not stray.exists()
    run_sql(database, EXPIRE)
    await sweep_exports(pool, folder)
    assert list(folder.folder.iterdir()) == [other]
    with pytest.raises(NotFound):
        await found(pool, export_id)


async def test_forgetting_a_person_removes_every_export_of_theirs(
    pool: Pool, tmp_path: Path
) -> None:
    own = await ask(pool, 1)
    about = await ask(pool, 2, owner=ROOT_PERSON, person=ANNA)
    others = await ask(pool, 3, owner=BERT, person=BERT)
    worker, folder = exporter(pool, tmp_path), ExportFolder(tmp_path)
    while await worker.export_next():
        pass
    await erase_exports(pool, tmp_path, ANNA)
    for export_id, owner in ((own, ANNA), (about, ROOT_PERSON)):
        with pytest.raises(NotFound):
            await found(pool, export_id, owner)
    kept = await found(pool, others, BERT)
    assert [path.name for path in folder.folder.iterdir()] == [f"{kept.id}.csv"]
