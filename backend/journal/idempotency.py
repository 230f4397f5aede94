"""A caller's idempotency key as the one id that its command may land under."""

from __future__ import annotations

import hashlib
import struct
from uuid import UUID

_VERSION_8 = 0x8 << 76
_VARIANT = 0b10 << 62
_FREE_BITS = ~((0xF << 76) | (0b11 << 62) | 0b11)


def command_id_of(scope: str, route: str, key: str) -> UUID:
    """The command id of `key` as `scope` (who asks) used it on `route` (what is asked).

    A UUIDv8 (RFC 9562 §5.8), so it never meets a UUIDv7; the two lowest bits stay zero, as they do
    in request ids.
    """
    digest = hashlib.sha256(length_prefixed(scope, route, key)).digest()
    number = int.from_bytes(digest[:16], "big")
    return UUID(int=(number & _FREE_BITS) | _VERSION_8 | _VARIANT)


def length_prefixed(*fields: str) -> bytes:
    """Fields as bytes that no other fields give."""
    encoded = [field.encode() for field in fields]
    return b"".join(struct.pack(">I", len(field)) + field for field in encoded)
