"""Seals: a signed Merkle root over the heads of all streams at one place in the log.

Heads, time and keys come in; it opens no file and no topic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from hashlib import sha256
from struct import Struct
from typing import Annotated, Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.event import Position

LEAF: Final = b"\x00"
NODE: Final = b"\x01"
"""RFC 6962 §2.1: hashed apart, so that a node cannot be passed off as a leaf."""
NO_SITE: Final = UUID(int=0)
NO_SEAL: Final = bytes(32)
"""What the first seal names as its previous one."""
SEAL_BYTES_MAX: Final = 64 * 1024

_HASH_BYTES: Final = 32
_DOMAIN: Final = b"suanpan1seal"
_LENGTH: Final = Struct(">I")
_VERSION: Final = Struct(">q")
_PLACE: Final = Struct(">qqqq")
_FIXED: Final = Struct(">q16sqqqqq32s32sq32s")


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far one partition of a topic had been read.

    `events` is how many of its rows, duplicates not counted: a restore may give rows new
    positions, but never another order within a partition.
    """

    topic: str
    shard: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    events: int
    position: Position


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the log was at a place: binary fields travel as base64 in JSON."""

    number: int
    """1, 2, 3… within one chain of seals."""
    site_id: UUID
    """Nil where the maker reads Kafka alone, which does not name the site."""
    position: Position
    """Every event up to here is covered; with `places`, the furthest of them."""
    events: int
    streams: int
    root: bytes
    previous: bytes
    """`seal_hash` of the seal before, or NO_SEAL."""
    made_at_us: int
    public_key: bytes
    """Ed25519, raw (RFC 8032)."""
    signature: bytes
    """Over `signed_bytes`."""
    places: tuple[Place, ...] = ()
    """Each partition's own place where they are read apart (Kafka): order holds only within one."""


class BrokenSeal(ValueError):
    """A seal that is not what its maker signed, or does not follow the one before."""


def leaf_hash(stream: str, version: int, head_hash: bytes) -> bytes:
    """SHA-256 of 0x00, the stream's name (4-byte length first), its version (int64), its hash."""
    name = stream.encode()
    return sha256(
        LEAF + _LENGTH.pack(len(name)) + name + _VERSION.pack(version) + head_hash
    ).digest()


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes in the given order (RFC 6962 §2.1); SHA-256 of nothing if empty."""
    level = list(leaves)
    if not level:
        return sha256(b"").digest()
    while len(level) > 1:
        level = [_parent(level, index) for index in range((len(level) + 1) // 2)]
    return level[0]


def _parent(level: list[bytes], index: int) -> bytes:
    left = 2 * index
    if left + 1 == len(level):
        return level[left]
    return sha256(NODE + level[left] + level[left + 1]).digest()


class HeadTree:
    """The heads of all streams by name, and their root: only what changed is hashed again."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[int, bytes]] = {}
        self._names: list[str] = []
        self._levels: list[list[bytes]] = [[]]
        self._changed: set[str] = set()
        self._new: set[str] = set()

    def put(self, stream: str, version: int, head_hash: bytes) -> None:
        """The stream's head is now this."""
        if stream in self._heads:
            self._changed.add(stream)
        else:
            self._new.add(stream)
        self._heads[stream] = (version, head_hash)

    def get(self, stream: str) -> tuple[int, bytes] | None:
        """(version, hash) of a stream's head."""
        return self._heads.get(stream)

    def heads(self) -> dict[str, tuple[int, bytes]]:
        """A copy: stream → (version, hash)."""
        return dict(self._heads)

    def __len__(self) -> int:
        return len(self._heads)

    def root(self) -> bytes:
        """As `merkle_root` over all leaves."""
        if not self._heads:
            return merkle_root(())
        dirty = self._update_leaves()
        for height in range(len(self._names).bit_length() + 1):
            level = self._levels[height]
            if len(level) == 1:
                del self._levels[height + 1 :]
                return level[0]
            if height + 1 == len(self._levels):
                self._levels.append([])
            dirty = _update_level(level, self._levels[height + 1], dirty)
        raise AssertionError("halving reaches one")

    def _update_leaves(self) -> set[int]:
        """Brings the lowest level up to date; returns the indexes that differ from before."""
        leaves, heads = self._levels[0], self._heads
        changed = self._changed - self._new
        if not self._new:
            dirty = {bisect_left(self._names, stream) for stream in changed}
            for index in dirty:
                stream = self._names[index]
                leaves[index] = leaf_hash(stream, *heads[stream])
        else:
            # Everything to the right of the first new name has moved.
            before = dict(zip(self._names, leaves, strict=True))
            first = bisect_left(self._names, min(self._new))
            self._names = sorted(heads)
            renewed = changed | self._new
            self._levels[0] = leaves = [
                leaf_hash(stream, *heads[stream]) if stream in renewed else before[stream]
                for stream in self._names
            ]
            dirty = {bisect_left(self._names, stream) for stream in changed}
            dirty |= set(range(first, len(leaves)))
        self._changed, self._new = set(), set()
        return dirty


def _update_level(level: list[bytes], above: list[bytes], dirty: set[int]) -> set[int]:
    size = (len(level) + 1) // 2
    parents = {index >> 1 for index in dirty}
    parents |= set(range(len(above), size))
    del above[size:]
    above.extend(b"" for _ in range(size - len(above)))
    for index in parents:
        above[index] = _parent(level, index)
    return parents


def signed_bytes(seal: Seal) -> bytes:
    """The canonical bytes of a seal: fixed-width big-endian fields, then its places, counted.

    Raises ValueError for a field of the wrong size, which no maker of ours writes.
    """
    at = seal.position
    if not len(seal.root) == len(seal.previous) == len(seal.public_key) == _HASH_BYTES:
        raise ValueError("roots, hashes and keys have 32 bytes")
    if not all(-(2**63) <= number < 2**63 for number in _numbers(seal)):
        raise ValueError("a number of a seal fits in 64 bits")
    parts = [
        _DOMAIN,
        _FIXED.pack(
            seal.number,
            seal.site_id.bytes,
            at.epoch,
            at.xid,
            at.seq,
            seal.events,
            seal.streams,
            seal.root,
            seal.previous,
            seal.made_at_us,
            seal.public_key,
        ),
        _LENGTH.pack(len(seal.places)),
    ]
    for place in seal.places:
        topic = place.topic.encode()
        parts += (_LENGTH.pack(len(topic)), topic, _LENGTH.pack(place.shard))
        at = place.position
        parts.append(_PLACE.pack(place.events, at.epoch, at.xid, at.seq))
    return b"".join(parts)


def _numbers(seal: Seal) -> Iterator[int]:
    yield from (seal.number, seal.events, seal.streams, seal.made_at_us)
    yield from (place.events for place in seal.places)
    for position in (seal.position, *(place.position for place in seal.places)):
        yield from (position.epoch, position.xid, position.seq)


def seal_hash(seal: Seal) -> bytes:
    """What the next seal names as previous: SHA-256 of the signed bytes and the signature."""
    return sha256(signed_bytes(seal) + seal.signature).digest()


def public_key_of(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def make_seal(
    key: Ed25519PrivateKey,
    previous: Seal | None,
    *,
    site_id: UUID,
    position: Position,
    events: int,
    tree: HeadTree,
    made_at_us: int,
    places: tuple[Place, ...] = (),
) -> Seal:
    """The seal after `previous`, signed."""
    unsigned = Seal(
        number=1 if previous is None else previous.number + 1,
        site_id=site_id,
        position=position,
        events=events,
        streams=len(tree),
        root=tree.root(),
        previous=NO_SEAL if previous is None else seal_hash(previous),
        made_at_us=made_at_us,
        public_key=public_key_of(key),
        signature=b"",
        places=places,
    )
    return msgspec.structs.replace(unsigned, signature=key.sign(signed_bytes(unsigned)))


def encode_seal(seal: Seal) -> bytes:
    return msgspec.json.encode(seal)


def decode_seal(data: bytes) -> Seal:
    """Raises BrokenSeal."""
    try:
        return msgspec.json.decode(data, type=Seal)
    except msgspec.DecodeError as error:
        raise BrokenSeal(f"not a seal: {error}") from error


def verify_signature(seal: Seal) -> None:
    """Whether the holder of the seal's own public key signed exactly this. Raises BrokenSeal."""
    try:
        Ed25519PublicKey.from_public_bytes(seal.public_key).verify(
            seal.signature, signed_bytes(seal)
        )
    except (InvalidSignature, ValueError) as error:
        raise BrokenSeal(f"seal {seal.number}: the signature does not match") from error


def verify_follows(seal: Seal, previous: Seal | None, site_id: UUID) -> None:
    """Whether a seal is the next one of this site's chain, by the same key. Raises BrokenSeal."""
    if seal.site_id not in (site_id, NO_SITE):
        raise BrokenSeal(f"seal {seal.number} belongs to another site")
    expected = 1 if previous is None else previous.number + 1
    if seal.number != expected:
        raise BrokenSeal(f"seal {expected} is missing: {seal.number} comes next")
    if seal.previous != (NO_SEAL if previous is None else seal_hash(previous)):
        raise BrokenSeal(f"seal {seal.number} does not name the seal before it")
    if previous is None:
        return
    if seal.public_key != previous.public_key:
        raise BrokenSeal(f"seal {seal.number} was signed with another key")
    if seal.events < previous.events:
        raise BrokenSeal(f"seal {seal.number} covers less than the seal before it")
