"""The hash chain of a stream, over the stored bytes; nothing is ever re-encoded to verify it."""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import Final
from uuid import UUID

from schemas.event import Recorded

_DOMAIN: Final = b"\x00\x00\x00\x08suanpan1"
_GENESIS: Final = b"\x00\x00\x00\x0fsuanpan1genesis"
_LENGTH: Final = Struct(">I")
_NUMBER: Final = Struct(">Iq")
_IDS: Final = Struct(">I16sI16s")


def genesis_hash(site_id: UUID, stream: str) -> bytes:
    """What the first event of a stream is chained to: binds the site and the stream's name."""
    name = stream.encode()
    return sha256(
        _GENESIS + _LENGTH.pack(16) + site_id.bytes + _LENGTH.pack(len(name)) + name
    ).digest()


def event_hash(
    prev_hash: bytes,
    stream: str,
    version: int,
    event_id: UUID,
    command_id: UUID,
    topic: str,
    type_name: str,
    schema: int,
    at_us: int,
    payload: bytes,
) -> bytes:
    """SHA-256 over the length-prefixed fields (4-byte big-endian lengths), in this order:

    "suanpan1", prev (32), stream, version (int64), event id (16), command id (16), topic, type,
    schema (int64), at (int64 microseconds since 1970), payload. Text is UTF-8.
    """
    pack = _LENGTH.pack
    name, topic_name, kind = stream.encode(), topic.encode(), type_name.encode()
    return sha256(
        b"".join(
            (
                _DOMAIN,
                pack(len(prev_hash)),
                prev_hash,
                pack(len(name)),
                name,
                _NUMBER.pack(8, version),
                _IDS.pack(16, event_id.bytes, 16, command_id.bytes),
                pack(len(topic_name)),
                topic_name,
                pack(len(kind)),
                kind,
                _NUMBER.pack(8, schema),
                _NUMBER.pack(8, at_us),
                pack(len(payload)),
                payload,
            )
        )
    ).digest()


def hash_of(row: Recorded) -> bytes:
    """The hash that a stored row should carry."""
    return event_hash(
        row.prev_hash,
        row.stream,
        row.version,
        row.event_id,
        row.command_id,
        row.topic,
        row.type,
        row.schema,
        row.at_us,
        row.payload,
    )
