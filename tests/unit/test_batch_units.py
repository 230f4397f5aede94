"""A batch: commands decided on top of one another, streams tied into units, one append laid out."""

from __future__ import annotations

from base64 import b64decode
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.journal.append import AppendInput
from backend.journal.batch import Batch, Head
from backend.journal.chain import event_hash, genesis_hash
from backend.journal.commands import (
    Accept,
    Command,
    LeaseClose,
    LeaseOpen,
    LeaseSweep,
    Refuse,
    Standing,
)
from backend.journal.fold import Fold, Folds
from backend.journal.heads import ENTRY_BYTES, HeadCache
from backend.ledger.account import ACCOUNT, ImpossibleHistory
from schemas.event import shard_of
from schemas.ledger import GrantKind, PointsGranted
from schemas.money import MicroPoints
from schemas.prices import Free
from schemas.registry import encode
from tests.given import (
    AT_US,
    SITE,
    batch_on,
    empty_heads,
    granting,
    held_event,
    hold_asked,
    holding,
    new_id,
    new_request,
    opening,
    settle_asked,
    settling,
    with_upt,
)


class Tally(msgspec.Struct, frozen=True):
    upt: int = 0


def _count(state: Tally, event: PointsGranted, version: int, at_us: int) -> Tally:
    if event.amount_upt < 0:
        raise ImpossibleHistory("counts up only")
    return Tally(state.upt + event.amount_upt)


TALLIES = Folds([Fold("account", Tally(), _count)])


def stream(number: int) -> str:
    return f"account:{number}"


def tying(*numbers: int, writes: tuple[int, ...] | None = None) -> Command:
    """A command that reads these streams and writes to those of `writes` (all)."""
    indexes = range(len(numbers)) if writes is None else writes

    def decide(standings: tuple[Standing, ...], at_us: int) -> Accept:
        one = PointsGranted(MicroPoints(1), GrantKind.OPERATOR, "cli")
        return Accept(tuple((index, one) for index in indexes))

    return Command(new_id(), tuple(stream(number) for number in numbers), decide)


def tallies(count: int, version: int = 0) -> Batch:
    heads = {
        stream(n): Head(version, genesis_hash(SITE, stream(n)), Tally(0)) for n in range(count)
    }
    return Batch(TALLIES, heads, AT_US, new_id)


def units(batch: Batch) -> set[frozenset[str]]:
    found: dict[int, set[str]] = {}
    for name in batch.touched():
        unit = batch.unit_of(name)
        assert unit is not None
        found.setdefault(unit, set()).add(name)
    return {frozenset(names) for names in found.values()}


def everything(batch: Batch, *names: str) -> Any:
    """All that a batch says about itself."""
    heads = [batch.head_of(name) for name in names]
    return batch.laid_out(), heads, [batch.unit_of(name) for name in names], batch.touched()


GROUPS = st.lists(
    st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True), min_size=1, max_size=12
)


@given(GROUPS)
def test_streams_tied_by_a_chain_of_commands_are_one_unit(groups: list[list[int]]) -> None:
    batch = tallies(12)
    expected: set[frozenset[str]] = set()
    for group in groups:
        batch.add(tying(*group))
        touching = {unit for unit in expected if unit & {stream(n) for n in group}}
        merged = frozenset(stream(n) for n in group).union(*touching)
        expected = (expected - touching) | {merged}
    assert units(batch) == expected


@given(GROUPS)
def test_everything_a_command_records_carries_the_unit_of_its_streams(
    groups: list[list[int]],
) -> None:
    batch = tallies(12)
    streams_of: dict[UUID, tuple[str, ...]] = {}
    for group in groups:
        command = tying(*group)
        streams_of[command.command_id] = command.streams
        batch.add(command)
    given_in = batch.laid_out()
    unit_of = {row.stream: row.unit for row in given_in.streams}
    assert len(unit_of) == len(given_in.streams), "a stream has one row"
    for event in given_in.events:
        assert event.unit == unit_of[event.stream]
    for command in given_in.commands:
        assert {unit_of[name] for name in streams_of[command.command_id]} == {command.unit}


def test_commands_on_separate_streams_are_separate_units() -> None:
    batch = tallies(3)
    for number in range(3):
        batch.add(tying(number))
    assert len(units(batch)) == 3


def test_a_stream_that_is_only_read_is_tied_and_guarded_but_not_changed() -> None:
    batch = tallies(2, version=5)
    batch.add(tying(0, 1, writes=(0,)))
    rows = {row.stream: row for row in batch.laid_out().streams}
    assert (rows[stream(0)].expected, rows[stream(0)].version) == (5, 6)
    assert (rows[stream(1)].expected, rows[stream(1)].version) == (5, 5)
    assert rows[stream(0)].unit == rows[stream(1)].unit


def test_a_stream_that_does_not_exist_cannot_only_be_read() -> None:
    batch = tallies(2)
    before = everything(batch, stream(0), stream(1))
    with pytest.raises(ValueError, match="cannot only be read"):
        batch.add(tying(0, 1, writes=(0,)))
    assert everything(batch, stream(0), stream(1)) == before


def test_accepting_nothing_is_a_programmers_error() -> None:
    batch = tallies(1)
    with pytest.raises(ValueError, match="at least one event"):
        batch.add(Command(new_id(), (stream(0),), lambda _, __: Accept(())))


def refusing(*numbers: int) -> Command:
    names = tuple(stream(number) for number in numbers)
    return Command(new_id(), names, lambda _, __: Refuse("no"))


def failing_in_decide() -> Command:
    def decide(standings: tuple[Standing, ...], at_us: int) -> Accept:
        raise RuntimeError("a programmer's error")

    return Command(new_id(), (stream(0), stream(1)), decide)


def failing_in_apply_after_one_event() -> Command:
    good = PointsGranted(MicroPoints(1), GrantKind.OPERATOR, "cli")
    bad = PointsGranted(MicroPoints(-1), GrantKind.OPERATOR, "cli")
    decision = Accept(((0, good), (1, good), (1, bad)), (LeaseOpen(new_request(), 1),))
    return Command(new_id(), (stream(0), stream(1)), lambda _, __: decision)


def failing_in_encode() -> Command:
    huge = PointsGranted(MicroPoints(1), GrantKind.OPERATOR, "x" * 600_000)
    return Command(new_id(), (stream(0), stream(1)), lambda _, __: Accept(((0, huge),)))


def failing_on_a_lone_surrogate() -> Command:
    torn = PointsGranted(MicroPoints(1), GrantKind.OPERATOR, "\ud800")
    return Command(new_id(), (stream(0), stream(1)), lambda _, __: Accept(((0, torn),)))


@pytest.mark.parametrize(
    "failing",
    [
        failing_in_decide,
        failing_in_apply_after_one_event,
        failing_in_encode,
        failing_on_a_lone_surrogate,
    ],
)
def test_a_command_that_raises_leaves_the_batch_as_it_was(failing: Any) -> None:
    batch = tallies(3)
    batch.add(tying(0))
    batch.add(tying(2))
    before = everything(batch, stream(0), stream(1), stream(2))
    with pytest.raises((RuntimeError, ValueError)):
        batch.add(failing())
    assert everything(batch, stream(0), stream(1), stream(2)) == before


def test_a_refused_command_ties_nothing_and_leaves_the_batch_as_it_was() -> None:
    batch = tallies(3)
    batch.add(tying(0))
    before = everything(batch, stream(0), stream(1), stream(2))
    assert batch.add(refusing(0, 1, 2)) == Refuse("no")
    assert everything(batch, stream(0), stream(1), stream(2)) == before


def test_several_commands_on_one_stream_see_and_chain_on_one_another() -> None:
    name = stream(1)
    batch = batch_on(empty_heads(name))
    first, second = new_request(), new_request()
    for command in (
        opening(1),
        granting(1, 1_500_000),
        holding(1, hold_asked(first)),
        settling(1, settle_asked(first)),
        holding(1, hold_asked(second)),
    ):
        batch.add(command)
    given_in = batch.laid_out()
    types = [event.type for event in given_in.events]
    assert types == [
        "AccountOpened", "PointsGranted", "PointsHeld", "HoldSettled", "RequestRefused",
    ]  # fmt: skip
    assert [event.version for event in given_in.events] == [1, 2, 3, 4, 5]
    assert [event.ordinal for event in given_in.events] == [0, 1, 2, 3, 4]
    _chained(given_in, name, genesis_hash(SITE, name))
    (row,) = given_in.streams
    assert (row.expected, row.version, row.hash) == (0, 5, given_in.events[-1].hash)
    assert ACCOUNT.decode(b64decode(row.state)) == batch.head_of(name).state


def _chained(given_in: AppendInput, name: str, prev_hash: bytes) -> None:
    for event in (event for event in given_in.events if event.stream == name):
        assert b64decode(event.prev_hash) == prev_hash
        prev_hash = event_hash(
            prev_hash, name, event.version, event.event_id, event.command_id, event.topic,
            event.type, event.schema, AT_US, b64decode(event.payload),
        )  # fmt: skip
        assert b64decode(event.hash) == prev_hash
        assert event.shard == shard_of(name)


def test_two_commands_of_a_batch_cannot_spend_the_same_point() -> None:
    name = stream(1)
    state = with_upt(1_000_000)
    batch = batch_on({name: Head(2, b"h" * 32, state)})
    answers = [batch.add(holding(1, hold_asked(new_request()))) for _ in range(3)]
    events = [a.events[0][1] for a in answers if isinstance(a, Accept)]
    assert [type(event).__name__ for event in events] == [
        "PointsHeld", "RequestRefused", "RequestRefused",
    ]  # fmt: skip
    assert batch.head_of(name).state.available_upt == 0


def test_a_command_lies_where_its_first_event_on_its_home_stream_lies() -> None:
    batch = tallies(2, version=3)
    home_last = Command(
        new_id(),
        (stream(0), stream(1)),
        lambda _, __: Accept(
            (
                (1, PointsGranted(MicroPoints(1), GrantKind.OPERATOR, "cli")),
                (0, PointsGranted(MicroPoints(2), GrantKind.OPERATOR, "cli")),
            )
        ),
    )
    away = tying(0, 1, writes=(1,))
    batch.add(home_last)
    batch.add(away)
    rows = {row.command_id: (row.stream, row.version) for row in batch.laid_out().commands}
    assert rows == {
        home_last.command_id: (stream(0), 4),
        away.command_id: (stream(1), 5),
    }


def test_the_stored_payload_is_the_event_as_it_was_encoded_once() -> None:
    batch = batch_on({stream(1): Head(2, b"h" * 32, with_upt(10))})
    batch.add(granting(1, 5))
    (event,) = batch.laid_out().events
    expected = PointsGranted(MicroPoints(5), GrantKind.OPERATOR, "cli")
    assert b64decode(event.payload) == encode(expected)


def test_leases_travel_with_the_unit_of_their_command() -> None:
    state = with_upt(10, held_event("a", 1), held_event("b", 1))
    batch = batch_on({stream(1): Head(4, b"h" * 32, state)})
    request = new_request()
    batch.add(holding(1, hold_asked(request, price=Free(), lease_s=9)))
    for lease in (LeaseClose("a"), LeaseSweep("b", 7)):
        one = PointsGranted(MicroPoints(1), GrantKind.OPERATOR, "cli")
        decision = Accept(((0, one),), (lease,))
        batch.add(Command(new_id(), (stream(1),), lambda _, __, d=decision: d))
    rows = [
        (row.request_id, row.act, row.seconds, row.generation, row.stream, row.unit)
        for row in batch.laid_out().leases
    ]
    assert rows == [
        (request, "open", 9, 0, stream(1), 0),
        ("a", "close", 0, 0, stream(1), 0),
        ("b", "sweep", 0, 7, stream(1), 0),
    ]


def test_the_least_recently_used_heads_leave_a_full_cache_first() -> None:
    cache = HeadCache(3 * (ENTRY_BYTES + 30))
    head = Head(1, b"", None)
    for name in ("a", "b", "c"):
        cache.put(name, head, 10)
    assert cache.get("a") is head
    cache.put("d", head, 10)
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]


def test_a_cache_stays_within_its_bytes_however_often_entries_change() -> None:
    cache = HeadCache(100 * (ENTRY_BYTES + 300))
    for turn in range(3_000):
        cache.put(str(turn % 170), Head(turn, b"", None), turn % 1_000)
        if turn % 7 == 0:
            cache.drop(str(turn % 50))
    assert 0 < len(cache) <= 150
    for turn in range(170):
        cache.drop(str(turn))
    assert len(cache) == 0
    for name in range(100):
        cache.put(str(name), Head(1, b"", None), 100)
    assert len(cache) == 100, "freed bytes are counted back"


def test_a_head_larger_than_the_cache_is_not_kept() -> None:
    cache = HeadCache(10_000)
    cache.put("small", Head(1, b"", None), 10)
    cache.put("huge", Head(1, b"", None), 10_000)
    assert cache.get("huge") is None
    cache.put("next", Head(1, b"", None), 10)
    assert cache.get("next") is not None
