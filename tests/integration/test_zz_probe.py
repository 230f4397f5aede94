from tests.integration.test_worker_jobs import *
import asyncio
async def test_probe(database, tmp_path):
    async with ledger_on(database.app_url) as ledger:
        await ledger.open_account(1, 10)
    async with open_pool(database.app_url) as pool:
        now_us = SystemClock().now_us()
        await add_export(pool, JOB, ROOT, None, ExportKind.LEDGER, ExportFormat.JSONL, RecordQuery(), now_us)
        await add_run(pool, JOB, "person:9", since_seal=False)
        async with role_process("worker", database, tmp_path) as worker:
            await asyncio.sleep(12)
            async with pool.connection() as c:
                print(await find_export(c, JOB, ROOT), await find_run(c, JOB))
            print(worker.log[-3000:])
