"""Replay: one digest whatever the pages and the interleaving, and the first difference named."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any
from uuid import uuid4

import pytest

from backend.folds import ALL_FOLDS
from backend.journal.reader import head, site_of
from backend.kit.postgres import connect
from projections.replay import digest_of, replay_table
from projections.row_source import MemoryRows, each_page
from projections.verifying import FaultKind, Verifier
from schemas.event import START, Recorded
from tests.integration.audited_site import make_history
from tests.integration.log_writing import rows_of


def shuffled_between_streams(rows: list[Recorded], seed: int) -> list[Recorded]:
    """Another interleaving: order is kept within a stream and nowhere else."""
    chance = random.Random(seed)
    queues: defaultdict[str, deque[Recorded]] = defaultdict(deque)
    for row in rows:
        queues[row.stream].append(row)
    order: list[Recorded] = []
    while queues:
        stream = chance.choice(sorted(queues))
        order.append(queues[stream].popleft())
        if not queues[stream]:
            del queues[stream]
    return order


async def verifier_of(url: str, **more: Any) -> Verifier:
    async with await connect(url, application="test") as connection:
        site_id, _, _ = await site_of(connection)
    return Verifier(site_id, ALL_FOLDS, **more)


async def test_pages_of_any_size_give_one_digest(database: Any) -> None:
    await make_history(database.app_url)
    results = [
        await replay_table(database.app_url, ALL_FOLDS, page_rows=page_rows)
        for page_rows in (1, 2, 5, 28, 1_000)
    ]
    assert {result.events for result in results} == {28}
    assert {result.differences for result in results} == {()}
    assert len({result.digest for result in results}) == 1
    async with await connect(database.app_url, application="test") as connection:
        assert {result.position for result in results} == {await head(connection)}
    assert all(result.events_per_s > 0 for result in results)


@pytest.mark.parametrize("seed", range(5))
async def test_any_interleaving_of_streams_gives_the_same_digest(database: Any, seed: int) -> None:
    await make_history(database.app_url)
    expected = (await replay_table(database.app_url, ALL_FOLDS)).digest
    rows = await rows_of(database.app_url)
    verifier = await verifier_of(database.app_url)
    await each_page(MemoryRows(shuffled_between_streams(rows, seed), seed + 1), verifier.feed)
    assert verifier.faults() == []
    assert digest_of(verifier.lines.values()) == expected


async def test_events_that_come_again_change_nothing(database: Any) -> None:
    await make_history(database.app_url)
    rows = await rows_of(database.app_url)
    expected = (await replay_table(database.app_url, ALL_FOLDS)).digest
    verifier = await verifier_of(database.app_url, duplicates_known=1_000)
    for begin in range(0, len(rows), 3):
        verifier.feed(rows[begin : begin + 3])
        verifier.feed(rows[: begin + 3])
    assert verifier.faults() == []
    assert verifier.events == len(rows)
    assert digest_of(verifier.lines.values()) == expected


async def test_the_digest_changes_with_any_event(database: Any) -> None:
    await make_history(database.app_url)
    rows = await rows_of(database.app_url)
    digests: set[str] = set()
    for upto in range(len(rows) + 1):
        verifier = await verifier_of(database.app_url)
        verifier.feed(rows[:upto])
        digests.add(digest_of(verifier.lines.values()))
    assert len(digests) == len(rows) + 1


async def test_a_log_of_another_site_is_no_log_of_this_one(database: Any) -> None:
    await make_history(database.app_url)
    verifier = Verifier(uuid4(), ALL_FOLDS)
    verifier.feed(await rows_of(database.app_url))
    faults = verifier.faults()
    assert len(faults) == 9
    assert {(fault.kind, fault.version) for fault in faults} == {(FaultKind.CHANGED, 1)}


async def test_an_empty_log_replays(database: Any) -> None:
    result = await replay_table(database.app_url, ALL_FOLDS)
    assert (result.events, result.differences, result.position) == (0, (), START)
