"""Readers see every event once, in order, and nothing that could still be preceded."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

from backend.journal.reader import PAGE_ROWS, head, read_all, read_page, read_stream
from backend.kit.postgres import connect
from schemas.event import START, Position, Recorded
from tests.conftest import Database
from tests.integration.log_writing import open_log, until, write_slowly

WRITERS = 12
EVENTS = 15
TAKE_AN_ID = "SELECT pg_current_xact_id()"


async def follow(database: Database, count: int, count_max: int) -> list[Recorded]:
    """Reads page after page until `count` events have come."""
    seen: list[Recorded] = []
    place = START
    async with asyncio.timeout(30):
        async with await connect(database.app_url, application="test") as connection:
            while len(seen) < count:
                page = await read_page(connection, place, count_max)
                assert len(page) <= count_max
                if page:
                    seen.extend(page)
                    place = page[-1].position
                else:
                    await asyncio.sleep(0.001)
    return seen


async def test_twelve_slow_writers_and_readers_lose_and_invert_nothing(
    database: Database,
) -> None:
    """Commits come in another order than ids were given; one reader takes crumbs, one all."""
    chance = random.Random(3)
    readers = [
        asyncio.create_task(follow(database, WRITERS * EVENTS, count_max)) for count_max in (7, 500)
    ]
    await asyncio.gather(
        *(
            write_slowly(database.app_url, account, EVENTS, lambda: chance.uniform(0, 0.01))
            for account in range(WRITERS)
        )
    )
    crumbs, pages = await asyncio.gather(*readers)
    assert crumbs == pages
    assert [row.position for row in crumbs] == sorted({row.position for row in crumbs})
    assert [row.seq for row in crumbs] != sorted(row.seq for row in crumbs), "nothing was delayed"
    versions: dict[str, list[int]] = defaultdict(list)
    for row in crumbs:
        versions[row.stream].append(row.version)
    assert list(versions.values()) == [list(range(1, EVENTS + 1))] * WRITERS


async def test_nothing_is_seen_beyond_the_oldest_transaction_under_way(
    database: Database,
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant(1)
        async with (
            await connect(database.app_url, application="test") as reader,
            await connect(database.app_url, application="test") as idler,
        ):
            before = await settled_head(database)
            async with idler.transaction():
                await idler.execute(TAKE_AN_ID)
                await log.grant(1)
                assert await read_page(reader, before) == []
                assert await head(reader) == before
                stream = await read_stream(reader, "account:1", 2)
                assert [row.version for row in stream] == [2], "one stream needs no such wait"
            rows = await follow(database, 2, 100)
            assert [row.version for row in rows] == [1, 2]


async def settled_head(database: Database) -> Position:
    """The log's head once one event is visible: other databases of the server may hold it back."""
    found = START

    async def visible() -> bool:
        nonlocal found
        async with await connect(database.app_url, application="test") as connection:
            found = await head(connection)
        return found > START

    await until(visible, what="the first event is visible")
    return found


async def test_reading_up_to_a_position_includes_it_and_nothing_behind_it(
    database: Database,
) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 5), 5)
        rows = await follow(database, 20, 6)
        async with await connect(database.app_url, application="test") as connection:
            for upto in (rows[0], rows[7], rows[-1]):
                pages = [page async for page in read_all(connection, START, upto.position)]
                assert [row for page in pages for row in page] == rows[: rows.index(upto) + 1]
            rest = [page async for page in read_all(connection, rows[7].position)]
            assert [row for page in rest for row in page] == rows[8:]


async def test_more_than_a_page_is_read_in_pages(database: Database) -> None:
    async with open_log(database.app_url) as log:
        await log.grant_many(range(1, 205), 10)
        rows = await follow(database, 2_040, PAGE_ROWS)
        async with await connect(database.app_url, application="test") as connection:
            pages = [page async for page in read_all(connection, START)]
        assert [len(page) for page in pages] == [PAGE_ROWS, 40]
        assert [row for page in pages for row in page] == rows


async def test_a_new_epoch_is_read_behind_the_old_one(database: Database) -> None:
    """After a restore transaction ids may start again: the epoch comes first."""
    async with open_log(database.app_url) as log:
        await log.grant(1)
        async with await connect(database.owner_url, application="test") as connection:
            await connection.execute("UPDATE site SET epoch = 2")
        await log.grant(1)
        rows = await follow(database, 2, 10)
    assert [(row.epoch, row.version) for row in rows] == [(1, 1), (2, 2)]


async def test_a_waiting_reader_of_another_process_is_woken(database: Database) -> None:
    """`announce` reaches a second watch by NOTIFY, well before its slow poll."""
    async with open_log(database.app_url) as writing, open_log(database.app_url) as reading:
        await writing.grant(1)

        async def woken() -> bool:
            waiting = asyncio.create_task(reading.watch.wait(timeout_s=20))
            await asyncio.sleep(0)
            await writing.grant(1)
            done, _ = await asyncio.wait([waiting], timeout=1)
            waiting.cancel()
            return bool(done)

        await until(woken, what="a NOTIFY wakes the other watch")
