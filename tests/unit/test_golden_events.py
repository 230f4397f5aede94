"""I15: every payload ever released decodes to the same event, and folds to the same state.

A file per (type, schema) in `tests/golden`. A payload is never edited: a schema that changes gets
a new number, and a new file. What an earlier schema decodes to is the newest one's event.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from backend.folds import ALL_FOLDS
from schemas.event import Recorded, shard_of, topic_of
from schemas.registry import decode, encode, known_types

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STATES_SHA256 = {
    "log_1.json": "72b65649886fdff6106e8f4a3b834b5106ce1c27801cd8956ddb205a57a0fa55",
    "log_2.json": "f73798587dbc831b17fa30f985871a7a66dec3cfcb7f08ac51786bf336e0edf8",
}
"""Over the states of the streams in a log, sorted by stream. A log is never edited either."""


class Golden(msgspec.Struct, forbid_unknown_fields=True):
    """`payload` is the text that was stored; `decoded` the event as Python shows it."""

    type: str
    schema: int
    payload: str
    decoded: str


class Step(msgspec.Struct, forbid_unknown_fields=True):
    stream: str
    type: str
    schema: int
    payload: str


def golden_files() -> dict[tuple[str, int], Golden]:
    found = [
        msgspec.json.decode(path.read_bytes(), type=Golden)
        for path in sorted(GOLDEN.glob("*.*.json"))
    ]
    return {(golden.type, golden.schema): golden for golden in found}


def row_of(type_name: str, schema: int, payload: bytes, stream: str, version: int = 1) -> Recorded:
    return Recorded(
        epoch=1,
        xid=1,
        seq=version,
        event_id=UUID(int=version),
        command_id=UUID(int=version),
        topic=topic_of(stream),
        shard=shard_of(stream),
        stream=stream,
        version=version,
        type=type_name,
        schema=schema,
        at_us=1_750_000_000_000_000 + version,
        payload=payload,
        prev_hash=bytes(32),
        hash=bytes(32),
    )


def newest(type_name: str) -> tuple[str, int]:
    return max(known for known in known_types() if known[0] == type_name)


def test_every_known_schema_has_its_golden_file() -> None:
    assert sorted(golden_files()) == list(known_types())


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_a_released_payload_decodes_to_the_same_event(name: tuple[str, int]) -> None:
    golden = golden_files()[name]
    event: Any = decode(row_of(*name, golden.payload.encode(), "account:1"))
    assert repr(event) == golden.decoded
    assert (type(event).__name__, event.SCHEMA) == newest(name[0])


@pytest.mark.parametrize("name", sorted({newest(name) for name, _ in golden_files()}))
def test_the_newest_schema_is_still_written_as_it_was(name: tuple[str, int]) -> None:
    golden = golden_files()[name]
    event: Any = decode(row_of(*name, golden.payload.encode(), "account:1"))
    assert encode(event).decode() == golden.payload


@pytest.mark.parametrize("log", sorted(STATES_SHA256))
def test_a_golden_log_folds_to_the_same_states(log: str) -> None:
    steps = msgspec.json.decode((GOLDEN / log).read_bytes(), type=list[Step])
    assert {(step.type, step.schema) for step in steps} <= set(known_types())
    states: dict[str, tuple[int, Any]] = {}
    for step in steps:
        fold = ALL_FOLDS.of(step.stream)
        version, state = states.get(step.stream, (0, fold.empty))
        row = row_of(step.type, step.schema, step.payload.encode(), step.stream, version + 1)
        after = fold.apply(state, decode(row), row.version, row.at_us)
        states[step.stream] = (row.version, after)
    digest = sha256()
    for stream in sorted(states):
        version, state = states[stream]
        digest.update(
            b"%s %d %s\n" % (stream.encode(), version, ALL_FOLDS.of(stream).encode(state))
        )
    assert digest.hexdigest() == STATES_SHA256[log]


def test_every_known_schema_is_in_a_golden_log() -> None:
    found: set[tuple[str, int]] = set()
    for log in STATES_SHA256:
        steps = msgspec.json.decode((GOLDEN / log).read_bytes(), type=list[Step])
        found |= {(step.type, step.schema) for step in steps}
    assert found == set(known_types())
