"""I10: however a log is cut into batches and its streams are mixed, it folds to the same digest."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from functools import cache
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from backend.folds import ALL_FOLDS
from backend.journal.chain import hash_of
from projections.audit.books import Books
from projections.audit.report import Findings
from projections.replay import ALL_VERSIONS, digest_of
from projections.verifying import Verifier
from schemas.event import Recorded
from schemas.ledger import LedgerEvent
from tests.large_log import rows_of_a_life
from tests.model.histories import SEED, TIMES

EVENTS = 4_000
SITE = UUID(int=9)


@cache
def rows() -> tuple[Recorded, ...]:
    return tuple(rows_of_a_life(EVENTS, SEED, SITE))


@cache
def digest() -> str:
    verifier = Verifier(SITE, ALL_FOLDS)
    verifier.feed(rows())
    assert verifier.faults() == []
    return digest_of(verifier.lines.values())


def shuffled(chance: random.Random) -> Iterator[Recorded]:
    """Any order between streams, the log's within one."""
    queues: dict[str, deque[Recorded]] = {}
    for row in rows():
        queues.setdefault(row.stream, deque()).append(row)
    left = list(queues.values())
    while left:
        place = chance.randrange(len(left))
        # A run of one stream's rows, as a partition hands them out.
        for _ in range(min(chance.randrange(1, 30), len(left[place]))):
            yield left[place].popleft()
        if not left[place]:
            left[place] = left[-1]
            left.pop()


def batches(order: list[Recorded], chance: random.Random) -> Iterator[list[Recorded]]:
    begin = 0
    while begin < len(order):
        size = chance.choice((1, 2, 7, 100, 1_000))
        yield order[begin : begin + size]
        begin += size


@given(seed=st.integers(0, 2**32))
@settings(max_examples=12 * TIMES, deadline=None, database=None, derandomize=True)
def test_any_order_of_streams_and_any_batches_give_the_same_digest(seed: int) -> None:
    chance = random.Random(seed)
    verifier = Verifier(SITE, ALL_FOLDS)
    for batch in batches(list(shuffled(chance)), chance):
        verifier.feed(batch)
    assert verifier.faults() == []
    assert (verifier.events, digest_of(verifier.lines.values())) == (len(rows()), digest())


@given(seed=st.integers(0, 2**32))
@settings(max_examples=6 * TIMES, deadline=None, database=None, derandomize=True)
def test_batches_that_come_twice_change_nothing(seed: int) -> None:
    chance = random.Random(seed)
    verifier = Verifier(SITE, ALL_FOLDS, duplicates_known=ALL_VERSIONS)
    for batch in batches(list(shuffled(chance)), chance):
        verifier.feed(batch)
        if chance.random() < 0.5:
            verifier.feed(batch)
    assert verifier.faults() == []
    assert (verifier.events, digest_of(verifier.lines.values())) == (len(rows()), digest())


def test_another_order_within_a_stream_is_noticed() -> None:
    order = list(rows())
    places = [i for i, row in enumerate(order) if row.stream == "account:10"]
    one, other = places[-2:]
    order[one], order[other] = order[other], order[one]
    verifier = Verifier(SITE, ALL_FOLDS)
    verifier.feed(order)
    assert verifier.faults() != []


def test_a_life_holds_every_kind_of_ledger_event_and_the_auditor_finds_nothing() -> None:
    made = rows_of_a_life(20_000)
    kinds = {struct.__name__ for struct in LedgerEvent.__args__}
    assert kinds <= {row.type for row in made}
    findings = Findings()
    books = Books(findings)
    verifier = Verifier(UUID(int=1), ALL_FOLDS, books.observe)
    verifier.feed(made)
    books.finish()
    assert verifier.faults() == []
    assert [check for check in findings.checks() if not check.ok] == []
    assert all(row.hash == hash_of(row) for row in made[::50])
