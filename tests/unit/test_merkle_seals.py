"""Seals: the Merkle root of RFC 6962, the signed bytes, and what cannot be passed off as a seal."""

from __future__ import annotations

import random
from hashlib import sha256
from uuid import UUID

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from backend.journal.seal import (
    NO_SEAL,
    NO_SITE,
    BrokenSeal,
    HeadTree,
    Place,
    Seal,
    decode_seal,
    encode_seal,
    leaf_hash,
    make_seal,
    merkle_root,
    public_key_of,
    seal_hash,
    signed_bytes,
    verify_follows,
    verify_signature,
)
from schemas.event import Position

SITE = UUID("00000000-0000-4000-8000-000000000001")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HASH = st.binary(min_size=32, max_size=32)


def _rfc_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1 word for word: split at the largest power of two below n."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + _rfc_root(leaves[:split]) + _rfc_root(leaves[split:])).digest()


def _seal(previous: Seal | None = None, events: int = 3) -> Seal:
    tree = HeadTree()
    tree.put("account:1", events, bytes(32))
    return make_seal(
        KEY,
        previous,
        site_id=SITE,
        position=Position(1, 900, events),
        events=events,
        tree=tree,
        made_at_us=1_700_000_000_000_000,
        places=(Place("suanpan.ledger", 3, events, Position(1, 900, events)),),
    )


@given(st.lists(HASH, max_size=70))
def test_the_root_is_that_of_rfc_6962(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == _rfc_root(leaves)


def test_the_root_of_known_leaves() -> None:
    leaf = sha256(b"\x00" + b"\x00\x00\x00\x09account:1" + bytes(7) + b"\x05" + b"h" * 32).digest()
    assert leaf_hash("account:1", 5, b"h" * 32) == leaf
    assert merkle_root([leaf, leaf]) == sha256(b"\x01" + leaf + leaf).digest()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9), HASH), max_size=12), max_size=12
    )
)
def test_the_tree_gives_the_root_of_all_leaves_after_any_changes(
    rounds: list[list[tuple[int, int, bytes]]],
) -> None:
    tree, heads = HeadTree(), dict[str, tuple[int, bytes]]()
    for changes in rounds:
        for number, version, digest in changes:
            tree.put(f"account:{number}", version, digest)
            heads[f"account:{number}"] = (version, digest)
        leaves = [leaf_hash(stream, *heads[stream]) for stream in sorted(heads)]
        assert tree.root() == merkle_root(leaves)
        assert len(tree) == len(heads)
        assert tree.heads() == heads


def test_the_order_of_arrival_does_not_matter() -> None:
    heads = [
        (f"account:{number}", number + 1, sha256(b"%d" % number).digest()) for number in range(99)
    ]
    roots: set[bytes] = set()
    for seed in range(3):
        random.Random(seed).shuffle(heads)
        tree = HeadTree()
        for head in heads:
            tree.put(*head)
        roots.add(tree.root())
    assert len(roots) == 1


def test_seals_follow_one_another() -> None:
    first = _seal()
    second = _seal(first, 8)
    for seal, previous in ((first, None), (second, first)):
        again = decode_seal(encode_seal(seal))
        assert again == seal
        verify_signature(again)
        verify_follows(again, previous, SITE)
    assert (first.number, first.previous) == (1, NO_SEAL)
    assert (second.number, second.previous) == (2, seal_hash(first))
    assert second.public_key == public_key_of(KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"site_id": UUID(int=9)},
        {"position": Position(1, 900, 4)},
        {"events": 4},
        {"streams": 2},
        {"root": bytes(32)},
        {"root": b""},
        {"previous": bytes(31) + b"x"},
        {"made_at_us": 1},
        {"events": 2**64},
        {"public_key": bytes(32)},
        {"signature": bytes(64)},
        {"signature": b""},
        {"places": ()},
        {"places": (Place("suanpan.ledger", 4, 3, Position(1, 900, 3)),)},
        {"places": (Place("suanpan.ledger", 3, 2, Position(1, 900, 3)),)},
    ],
)
def test_a_changed_seal_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BrokenSeal):
        verify_signature(msgspec.structs.replace(_seal(), **change))


def test_every_field_is_signed() -> None:
    assert set(Seal.__struct_fields__) == {
        "number", "site_id", "position", "events", "streams", "root", "previous", "made_at_us",
        "public_key", "signature", "places",
    }  # fmt: skip
    assert signed_bytes(_seal()) != signed_bytes(_seal(None, 4))


def test_a_seal_that_does_not_follow_is_refused() -> None:
    first = _seal()
    second = _seal(first, 8)
    for seal, previous, site in (
        (second, None, SITE),
        (first, second, SITE),
        (_seal(second, 8), first, SITE),
        (_seal(_seal(None, 4), 8), first, SITE),
        (_seal(first, 2), first, SITE),
        (second, first, UUID(int=5)),
    ):
        with pytest.raises(BrokenSeal):
            verify_follows(seal, previous, site)


def test_another_key_is_no_successor() -> None:
    first = _seal()
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    seal = msgspec.structs.replace(_seal(first, 8), public_key=public_key_of(other))
    seal = msgspec.structs.replace(seal, signature=other.sign(signed_bytes(seal)))
    verify_signature(seal)
    with pytest.raises(BrokenSeal):
        verify_follows(seal, first, SITE)


def test_a_maker_that_does_not_know_the_site_is_taken() -> None:
    seal = msgspec.structs.replace(_seal(), site_id=NO_SITE)
    verify_follows(seal, None, SITE)


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b'{"number":1}'])
def test_what_is_no_seal_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenSeal):
        decode_seal(data)
