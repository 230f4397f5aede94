"""A worker's process makes the exports and runs the audits that people asked for elsewhere."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from backend.kit.clock import SystemClock
from backend.ledger.audit_runs import add_run, find_run
from backend.ledger.exports import (
    ExportFolder,
    ExportFormat,
    ExportKind,
    add_export,
    find_export,
)
from backend.ledger.record_filters import RecordQuery
from schemas.ids import PersonId
from tests.conftest import Database
from tests.integration.ledger_site import ledger_on
from tests.integration.projection_ground import open_pool, until
from tests.site import role_process

ROOT = PersonId(9)
JOB = UUID(int=4)


async def test_a_worker_exports_and_audits(database: Database, tmp_path: Path) -> None:
    async with ledger_on(database.app_url) as ledger:
        await ledger.open_account(1, 10)
    async with open_pool(database.app_url) as pool:
        now_us = SystemClock().now_us()
        await add_export(
            pool, JOB, ROOT, None, ExportKind.LEDGER, ExportFormat.JSONL, RecordQuery(), now_us
        )
        await add_run(pool, JOB, "person:9", since_seal=False)

        async def are_done() -> bool:
            async with pool.connection() as connection:
                export = await find_export(connection, JOB, ROOT)
                run = await find_run(connection, JOB)
            return export.status == run.status == "done"

        async with role_process("worker", database, tmp_path) as worker:
            await until(are_done, 60.0)
            worker.terminate()
            assert await worker.ended() == 0, worker.log
        async with pool.connection() as connection:
            export, run = await find_export(connection, JOB, ROOT), await find_run(connection, JOB)
    assert export.rows == 2
    file = ExportFolder(tmp_path / "data").file(export)
    assert len(file.read_bytes().splitlines()) == 2
    assert run.report is not None
    assert '"ok": true' in run.report
