"""The hash chain: pinned values, and a second plain implementation written from its description."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.journal.chain import event_hash, genesis_hash, hash_of
from schemas.event import Recorded

SITE = UUID("0192f0c4-5a7e-7000-8000-00000000abcc")
FIELDS: dict[str, Any] = {
    "stream": "account:42",
    "version": 1,
    "event_id": UUID("0192f0c4-5a7e-7001-8000-000000000010"),
    "command_id": UUID("0192f0c4-5a7e-7002-8000-000000000020"),
    "topic": "suanpan.ledger",
    "type_name": "AccountOpened",
    "schema": 1,
    "at_us": 1_700_000_000_123_456,
    "payload": b'{"person":42}',
}
GENESIS = "67cbaaf949eba7d5092ded68b48bf1fdf04bfe35a38748777bf6a4dba62213cc"
FIRST = "1f579ff4598287380b3766c34cef34c791727535329871bab2cfd6e753fcd499"
SECOND = "719839a97096ebfbef87e89da9be3966a6f4c0cc5e978595a1e1925e355c1e11"


def with_other(**fields: Any) -> dict[str, Any]:
    return {**FIELDS, **fields}


def plainly(prev_hash: bytes, fields: dict[str, Any]) -> bytes:
    """Length-prefixed fields, one after another, as a reader of the description would write it."""
    hasher = hashlib.sha256()
    parts = [
        b"suanpan1",
        prev_hash,
        fields["stream"].encode("utf-8"),
        fields["version"].to_bytes(8, "big", signed=True),
        fields["event_id"].bytes,
        fields["command_id"].bytes,
        fields["topic"].encode("utf-8"),
        fields["type_name"].encode("utf-8"),
        fields["schema"].to_bytes(8, "big", signed=True),
        fields["at_us"].to_bytes(8, "big", signed=True),
        fields["payload"],
    ]
    for part in parts:
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return hasher.digest()


def plain_genesis(site: UUID, stream: str) -> bytes:
    hasher = hashlib.sha256()
    for part in (b"suanpan1genesis", site.bytes, stream.encode("utf-8")):
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return hasher.digest()


def test_the_chain_of_two_events_has_the_pinned_hashes() -> None:
    """A change of these bytes breaks every chain that exists: it needs a new domain."""
    genesis = genesis_hash(SITE, "account:42")
    first = event_hash(genesis, **FIELDS)
    second = event_hash(first, **with_other(version=2, payload='{"名":"积分"}'.encode()))
    assert [genesis.hex(), first.hex(), second.hex()] == [GENESIS, FIRST, SECOND]


def test_a_plain_second_implementation_agrees() -> None:
    genesis = plain_genesis(SITE, "account:42")
    assert genesis == genesis_hash(SITE, "account:42")
    assert plainly(genesis, FIELDS) == event_hash(genesis, **FIELDS)


@given(
    st.fixed_dictionaries(
        {
            "stream": st.text(),
            "version": st.integers(1, 2**63 - 1),
            "event_id": st.uuids(),
            "command_id": st.uuids(),
            "topic": st.text(),
            "type_name": st.text(),
            "schema": st.integers(0, 2**15 - 1),
            "at_us": st.integers(-(2**63), 2**63 - 1),
            "payload": st.binary(),
        }
    ),
    st.binary(min_size=32, max_size=32),
)
def test_both_agree_on_any_fields(fields: dict[str, Any], prev_hash: bytes) -> None:
    assert event_hash(prev_hash, **fields) == plainly(prev_hash, fields)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("stream", "account:43"),
        ("version", 2),
        ("event_id", UUID(int=1)),
        ("command_id", UUID(int=1)),
        ("topic", "suanpan.catalog"),
        ("type_name", "AccountClosed"),
        ("schema", 2),
        ("at_us", 1_700_000_000_123_457),
        ("payload", b'{"person":43}'),
    ],
)
def test_every_field_is_bound(field: str, other: object) -> None:
    genesis = genesis_hash(SITE, "account:42")
    assert event_hash(genesis, **FIELDS) != event_hash(genesis, **with_other(**{field: other}))


def test_text_cannot_move_between_neighbouring_fields() -> None:
    genesis = genesis_hash(SITE, "account:42")
    moved = with_other(topic="suanpan.ledgerA", type_name="ccountOpened")
    assert event_hash(genesis, **FIELDS) != event_hash(genesis, **moved)


def test_the_beginning_binds_site_and_stream() -> None:
    assert genesis_hash(SITE, "account:1") != genesis_hash(SITE, "account:2")
    assert genesis_hash(SITE, "account:1") != genesis_hash(UUID(int=0), "account:1")


def test_a_stored_row_hashes_to_what_it_should_carry() -> None:
    prev_hash = genesis_hash(SITE, "account:42")
    digest = event_hash(prev_hash, **FIELDS)
    row = Recorded(
        1, 700, 1, FIELDS["event_id"], FIELDS["command_id"], FIELDS["topic"], 5, FIELDS["stream"],
        1, FIELDS["type_name"], 1, FIELDS["at_us"], FIELDS["payload"], prev_hash, digest,
    )  # fmt: skip
    assert hash_of(row) == digest
