"""One recorded event: a row of `event_log`, a Kafka record, and what every reader is given."""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from uuid import UUID
from zlib import crc32

import msgspec

from schemas.ids import kind_of

LEDGER: Final = "suanpan.ledger"
CATALOG: Final = "suanpan.catalog"
IDENTITY: Final = "suanpan.identity"
CONVERSATIONS: Final = "suanpan.conversations"
RUNS: Final = "suanpan.runs"
EVENT_TOPICS: Final = (LEDGER, CATALOG, IDENTITY, CONVERSATIONS, RUNS)

SHARDS: Final = 16
"""Fixed when a site is created: the partition of a stream must never move."""

PAYLOAD_BYTES_MAX: Final = 512 * 1024

_TOPIC_OF_KIND: Final = {
    "account": LEDGER,
    "code": LEDGER,
    "channel": CATALOG,
    "price": CATALOG,
    "pricelist": CATALOG,
    "plan": CATALOG,
    "group": CATALOG,
    "limit": CATALOG,
    "setting": CATALOG,
    "model": CATALOG,
    "announcement": CATALOG,
    "person": IDENTITY,
    "name": IDENTITY,
    "key": IDENTITY,
    "conversation": CONVERSATIONS,
    "library": CONVERSATIONS,
    "run": RUNS,
}


@lru_cache(maxsize=16_384)
def topic_of(stream: str) -> str:
    """The Kafka topic that carries a stream. KeyError for a kind nobody declared."""
    return _TOPIC_OF_KIND[kind_of(stream)]


@lru_cache(maxsize=16_384)
def shard_of(stream: str) -> int:
    """The Kafka partition of a stream: CRC-32 (IEEE 802.3) of its UTF-8 name modulo 16."""
    return crc32(stream.encode()) % SHARDS


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the log's total reading order."""

    epoch: int
    xid: int
    seq: int


START: Final = Position(0, 0, 0)


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event as it was stored. `payload` is the very bytes that were hashed."""

    epoch: int
    xid: int
    seq: int
    event_id: UUID
    command_id: UUID
    topic: str
    shard: int
    stream: str
    version: int
    type: str
    schema: int
    at_us: int
    """Microseconds since 1970-01-01T00:00:00Z, by the clock of the process that decided."""
    payload: bytes
    prev_hash: bytes
    hash: bytes

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.xid, self.seq)
