"""Ids: UUIDv7 with two bits kept for the commands of a request, streams, shards and topics."""

from __future__ import annotations

from uuid import UUID
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.journal.idempotency import command_id_of, length_prefixed
from schemas.event import CATALOG, IDENTITY, LEDGER, shard_of, topic_of
from schemas.ids import (
    PersonId,
    RequestId,
    account_stream,
    id_of,
    kind_of,
    late_command_id,
    outcome_command_id,
    uuid7,
)

NOW = st.integers(0, (1 << 48) * 1_000 - 1)
BITS = st.integers(0, (1 << 74) - 1)


@given(NOW, BITS)
def test_an_id_is_a_uuid_of_version_7_that_carries_its_millisecond(now_us: int, bits: int) -> None:
    made = uuid7(now_us, bits)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == now_us // 1_000


@given(NOW, BITS)
def test_a_request_its_outcome_and_its_late_usage_are_three_ids(now_us: int, bits: int) -> None:
    request = uuid7(now_us, bits)
    name = RequestId(str(request))
    ids = {request, outcome_command_id(name), late_command_id(name)}
    assert len(ids) == 3
    assert {made.int >> 2 for made in ids} == {request.int >> 2}


@given(NOW, BITS, BITS)
def test_commands_of_two_requests_never_meet(now_us: int, one: int, other: int) -> None:
    first, second = uuid7(now_us, one), uuid7(now_us, other)
    if first != second:
        names = [RequestId(str(request)) for request in (first, second)]
        ids = [made(n) for n in names for made in (outcome_command_id, late_command_id)]
        assert len({first, second, *ids}) == 6


def test_72_random_bits_reach_the_id() -> None:
    flipped = {uuid7(0, 0).int ^ uuid7(0, 1 << bit).int for bit in range(74)}
    assert len(flipped) == 73, "72 bits that each change their own place, and the two that are kept"


def test_names_of_streams_come_apart_at_the_first_colon() -> None:
    assert (kind_of("account:42"), id_of("account:42")) == ("account", "42")
    assert (kind_of("price:a:b"), id_of("price:a:b")) == ("price", "a:b")
    assert account_stream(PersonId(42)) == "account:42"


def test_topics_and_shards_are_what_kafka_was_given() -> None:
    assert topic_of("account:1") == topic_of("code:x") == LEDGER
    assert topic_of("price:gpt") == CATALOG
    assert topic_of("person:1") == topic_of("name:x") == topic_of("key:1") == IDENTITY
    assert shard_of("account:42") == crc32(b"account:42") % 16
    assert [shard_of(f"account:{n}") for n in range(6)] == [0, 6, 12, 10, 9, 15]
    with pytest.raises(KeyError):
        topic_of("nobody:1")


def test_an_idempotency_key_names_one_command_per_person_and_route() -> None:
    ids = {
        command_id_of("person:1", "chat", "key"),
        command_id_of("person:2", "chat", "key"),
        command_id_of("person:1", "grant", "key"),
        command_id_of("person:1", "chat", "key2"),
        command_id_of("person:1c", "hat", "key"),
    }
    assert len(ids) == 5
    assert all(made.version == 8 and made.int & 0b11 == 0 for made in ids)
    assert command_id_of("person:1", "chat", "key") == command_id_of("person:1", "chat", "key")


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_no_two_lists_of_fields_give_the_same_bytes(one: list[str], other: list[str]) -> None:
    assert (length_prefixed(*one) == length_prefixed(*other)) == (one == other)


def test_an_id_made_by_hand_matches_the_layout_of_rfc_9562() -> None:
    """The RFC's own example (appendix A.6): 2022-02-22T19:22:22Z, rand_a 0xCC3."""
    random_bits = (0xCC3 << 62) | 0x18C4DC0C0C07398F
    expected = UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f").int & ~0b11
    assert uuid7(1_645_557_742_000_000, random_bits).int == expected
