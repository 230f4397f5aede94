import time
import psycopg, pytest
from backend.kit.postgres import make_pool, connect
from projections.tables import ensure_tables
from backend.ledger import statements, request_log, log_entries
from backend.ledger.record_filters import *
from backend.ledger.record_pages import *
import msgspec

FILL = b"""
INSERT INTO read.statement (stream, version, kind, amount_upt, balance_upt, at_us, event_id,
    command_id, shard, request_id, model, price_model, price_version, basis, swept, key, channel)
SELECT 'account:' || mod(n, 20), n, 'settle', -1500, 1000000000000, 1700000000000000 + n,
    gen_random_uuid(), gen_random_uuid(), 3, gen_random_uuid(), 'gpt', 'gpt', 3, 'reported', false, 7, 8
FROM generate_series(1, 300000) n
"""
FILLR = b"""
INSERT INTO read.requests SELECT 'account:' || mod(n, 20), gen_random_uuid(), 'settled', 7, 'gpt', 'gpt', 3, 'relay.chat', true, 1,1,0,0,1,1,1,1,1,'reported',8,'gpt',200,null,null,1,false, 1700000000000000 + n, 1,1,1,n,'',1,null,null,null,0,0,0,0,0 FROM generate_series(1, 300000) n
"""
async def test_plans(database):
    async with make_pool(database.app_url, application="x", size_max=1) as pool:
        await ensure_tables(pool)
    with psycopg.connect(database.superuser_url, autocommit=True) as c:
        c.execute(FILL); c.execute(FILLR); c.execute("ANALYZE")
    async with await connect(database.app_url, application="x") as c:
        async def explain(name, q, args):
            r = await (await c.execute("EXPLAIN (ANALYZE, BUFFERS OFF, COSTS OFF) " + q, args, prepare=False)).fetchall()
            print("==", name); print("\n".join(x[0] for x in r if "Filter" not in x[0]))
        A = msgspec.structs.asdict
        f = StatementFilter("account:5")
        old = StatementFilter("account:5", since_us=1700000000010000, until_us=1700000000020000)
        await explain("own page", statements.LIST_OF_ACCOUNT, {**A(f), **A(StatementPlace()), "limit": 50})
        await explain("own old", statements.LIST_OF_ACCOUNT, {**A(old), **A(StatementPlace()), "limit": 50})
        await explain("all", statements.LIST_OF_ALL, {**A(StatementFilter()), **A(StatementPlace()), "limit": 50})
        await explain("all page", statements.LIST_OF_ALL, {**A(StatementFilter()), **A(StatementPlace(1700000000200000, "account:3", 200000)), "limit": 50})
        await explain("onward", statements.LIST_ONWARD, {**A(f), **A(StatementPlace(stream="account:5", version=150000)), "limit": 500})
        await explain("onward all", statements.LIST_ONWARD, {**A(StatementFilter()), **A(StatementPlace(stream="account:5", version=150000)), "limit": 500})
        await explain("request", statements.LIST_OF_ALL, {**A(StatementFilter(request_id=LAST_REQUEST)), **A(StatementPlace()), "limit": 50})
        await explain("posted", statements.FIND_POSTED_AT, {"account": "account:5", "at_us": 1700000000200000, "skew_us": -60_000_000})
        await explain("own totals", statements.TOTALS, A(f))
        r = RequestFilter("account:5"); 
        await explain("r own", request_log.LIST_NEWEST, {**A(r), "started_us": ALWAYS_US, "at_request": LAST_REQUEST, "limit": 50})
        await explain("r own old", request_log.LIST_NEWEST, {**A(RequestFilter("account:5", until_us=1700000000020000)), "started_us": ALWAYS_US, "at_request": LAST_REQUEST, "limit": 50})
        await explain("r all", request_log.LIST_NEWEST, {**A(RequestFilter()), "started_us": 1700000000100000, "at_request": LAST_REQUEST, "limit": 50})
        await explain("r one", request_log.LIST_NEWEST, {**A(RequestFilter(request_id=FIRST_REQUEST)), "started_us": ALWAYS_US, "at_request": LAST_REQUEST, "limit": 1})
        await explain("onw all", request_log.LIST_ONWARD, {**A(RequestFilter()), "started_us": 1700000000100000, "at_request": LAST_REQUEST, "limit": 500})
