"""The verifier's own hashing is the chain's, and every misfit is told apart."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.journal.chain import event_hash, genesis_hash
from projections.verifying import Fault, FaultKind, Verifier
from schemas.event import Recorded, shard_of, topic_of
from schemas.ids import PersonId
from schemas.ledger import AccountOpened, GrantKind, PointsGranted
from schemas.money import MicroPoints
from schemas.registry import encode
from tests.given import FOLDS, SITE

STREAM = "account:1"
NUMBER = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def row(
    version: int, payload: bytes, prev_hash: bytes, type_name: str = "PointsGranted", **more: Any
) -> Recorded:
    fields: dict[str, Any] = {
        "prev_hash": prev_hash,
        "stream": STREAM,
        "version": version,
        "event_id": UUID(int=version),
        "command_id": UUID(int=1000 + version),
        "topic": topic_of(STREAM),
        "type_name": type_name,
        "schema": 1,
        "at_us": 1_700_000_000_000_000 + version,
        "payload": payload,
    } | more
    digest = event_hash(**fields)
    fields["type"] = fields.pop("type_name")
    return Recorded(
        epoch=1, xid=version, seq=version, shard=shard_of(STREAM), hash=digest, **fields
    )


def chain(length: int) -> list[Recorded]:
    first = encode(AccountOpened(PersonId(1)))
    rows = [row(1, first, genesis_hash(SITE, STREAM), "AccountOpened")]
    for version in range(2, length + 1):
        event = PointsGranted(MicroPoints(version), GrantKind.OPERATOR, "cli")
        rows.append(row(version, encode(event), rows[-1].hash))
    return rows


def faults_of(rows: list[Recorded], **more: Any) -> list[Fault]:
    verifier = Verifier(SITE, FOLDS, **more)
    verifier.feed(rows)
    return verifier.faults()


def named(faults: list[Fault]) -> list[tuple[FaultKind, int]]:
    return [(fault.kind, fault.version) for fault in faults]


@given(
    schema=st.integers(-(2**15), 2**15 - 1),
    at_us=NUMBER,
    payload=st.binary(max_size=300),
    type_name=TEXT,
    topic=TEXT,
    event_id=st.uuids(),
    command_id=st.uuids(),
)
def test_a_row_with_the_chains_hash_is_never_called_changed(
    schema: int,
    at_us: int,
    payload: bytes,
    type_name: str,
    topic: str,
    event_id: UUID,
    command_id: UUID,
) -> None:
    made = row(
        1,
        payload,
        genesis_hash(SITE, STREAM),
        type_name,
        schema=schema,
        at_us=at_us,
        topic=topic,
        event_id=event_id,
        command_id=command_id,
    )
    verifier = Verifier(SITE, None)
    verifier.feed([made])
    kinds = {fault.kind for fault in verifier.faults()}
    assert kinds == (set() if topic == topic_of(STREAM) else {FaultKind.MISPLACED})
    for changed in (
        msgspec.structs.replace(made, payload=payload + b"x"),
        msgspec.structs.replace(made, at_us=at_us ^ 1),
        msgspec.structs.replace(made, type=type_name + "x"),
        msgspec.structs.replace(made, event_id=UUID(int=event_id.int ^ 1)),
    ):
        again = Verifier(SITE, None)
        again.feed([changed])
        assert [fault.kind for fault in again.faults()] == [FaultKind.CHANGED]


def test_a_whole_chain_has_no_faults() -> None:
    verifier = Verifier(SITE, FOLDS)
    verifier.feed(chain(5))
    assert verifier.faults() == []
    assert (verifier.events, verifier.lines[STREAM].version) == (5, 5)
    assert verifier.lines[STREAM].state.issued_upt == 2 + 3 + 4 + 5


@pytest.mark.parametrize("gone", [1, 2, 4])
def test_a_missing_row_is_named_once(gone: int) -> None:
    rows = [each for each in chain(6) if each.version != gone]
    assert named(faults_of(rows)) == [(FaultKind.MISSING, gone)]


def test_a_second_row_is_named() -> None:
    rows = chain(4)
    assert named(faults_of([*rows, rows[1]])) == [(FaultKind.TWICE, 2)]
    assert named(faults_of([*rows, rows[1]], duplicates_known=10)) == []


def test_the_same_version_with_another_hash_is_a_fork_even_where_duplicates_may_come() -> None:
    rows = chain(4)
    fork = row(3, b'{"amount_upt":9,"kind":"operator","actor":"cli"}', rows[1].hash)
    assert named(faults_of([*rows, fork], duplicates_known=10)) == [(FaultKind.TWICE, 3)]


def test_duplicates_too_far_back_to_compare_are_dropped() -> None:
    rows = chain(40)
    assert faults_of([*rows, rows[1]], duplicates_known=2) == []


def test_a_row_under_a_false_name_is_named_where_it_belongs() -> None:
    rows = chain(4)
    rows[2] = msgspec.structs.replace(rows[2], stream="account:2")
    assert [(f.stream, f.version) for f in faults_of(rows)] == [(STREAM, 3)]


def test_a_row_in_another_shard_is_misplaced() -> None:
    rows = chain(3)
    rows[1] = msgspec.structs.replace(rows[1], shard=rows[1].shard ^ 1)
    assert named(faults_of(rows)) == [(FaultKind.MISPLACED, 2)]


def test_an_unknown_type_is_unreadable_and_an_impossible_event_is_told() -> None:
    rows = chain(2)
    unknown = row(3, b"{}", rows[1].hash, "PointsMinted")
    assert named(faults_of([*rows, unknown])) == [(FaultKind.UNREADABLE, 3)]
    opened_again = row(3, encode(AccountOpened(PersonId(1))), rows[1].hash, "AccountOpened")
    assert named(faults_of([*rows, opened_again])) == [(FaultKind.IMPOSSIBLE, 3)]


def test_a_rewritten_history_breaks_at_the_first_row_that_was_not() -> None:
    rows = chain(5)
    rows[2] = row(3, b'{"amount_upt":9,"kind":"operator","actor":"cli"}', rows[1].hash)
    assert named(faults_of(rows)) == [(FaultKind.CHANGED, 4)]


def test_what_a_first_event_is_chained_to_may_be_unknown() -> None:
    verifier = Verifier(None, None)
    verifier.feed(chain(3))
    assert verifier.faults() == []
