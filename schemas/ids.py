"""Names of things. A stream is `kind:id`; a request id is a UUIDv7 that also names its commands."""

from __future__ import annotations

from typing import NewType
from uuid import UUID

PersonId = NewType("PersonId", int)
KeyId = NewType("KeyId", int)
ChannelId = NewType("ChannelId", int)
RequestId = NewType("RequestId", str)
StreamName = NewType("StreamName", str)

_OUTCOME_BITS = 0x1
_LATE_BITS = 0x2


def uuid7(now_us: int, random_bits: int) -> UUID:
    """A UUIDv7 (RFC 9562 §5.7) from microseconds since 1970 and 74 random bits.

    The two lowest bits stay zero: they are kept for the ids of commands about this request.
    """
    milliseconds = now_us // 1000
    high = (milliseconds << 16) | (0x7 << 12) | ((random_bits >> 62) & 0xFFF)
    low = (0b10 << 62) | (random_bits & 0x3FFFFFFFFFFFFFFC)
    return UUID(int=(high << 64) | low)


def outcome_command_id(request_id: RequestId) -> UUID:
    """The one command id under which a request may end: settle, release and sweep share it (I3)."""
    return UUID(int=UUID(request_id).int | _OUTCOME_BITS)


def late_command_id(request_id: RequestId) -> UUID:
    """The command id under which usage that came after a sweep is recorded, at most once."""
    return UUID(int=UUID(request_id).int | _LATE_BITS)


def account_stream(person: PersonId) -> StreamName:
    return StreamName(f"account:{person}")


def person_stream(person: PersonId) -> StreamName:
    return StreamName(f"person:{person}")


def key_stream(key: KeyId) -> StreamName:
    return StreamName(f"key:{key}")


def channel_stream(channel: ChannelId) -> StreamName:
    return StreamName(f"channel:{channel}")


def price_stream(model: str) -> StreamName:
    return StreamName(f"price:{model}")


def plan_stream(level: int) -> StreamName:
    return StreamName(f"plan:{level}")


def group_stream(name: str) -> StreamName:
    return StreamName(f"group:{name}")


def limit_stream(scope: str, identity: str) -> StreamName:
    """The limits of one key, person, group or model: `limit:key:7`."""
    return StreamName(f"limit:{scope}:{identity}")


def pricelist_stream(name: str) -> StreamName:
    return StreamName(f"pricelist:{name}")


def code_stream(digest: bytes) -> StreamName:
    """A code by its keyed hash: the code itself is kept nowhere."""
    return StreamName(f"code:{digest.hex()}")


def kind_of(stream: str) -> str:
    """`account` of `account:42`."""
    return stream.partition(":")[0]


def id_of(stream: str) -> str:
    """`42` of `account:42`."""
    return stream.partition(":")[2]
