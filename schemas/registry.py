"""Which struct a (type, schema) pair is. Released schemas are never edited: new number,
upcaster.
"""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec

from schemas.catalog import CatalogEvent
from schemas.earlier import Earlier, EarlierEvent
from schemas.event import PAYLOAD_BYTES_MAX, Recorded
from schemas.identity import IdentityEvent
from schemas.ledger import LedgerEvent

Event = LedgerEvent | CatalogEvent | IdentityEvent


class UndecodableEvent(ValueError):
    """The stored bytes are no event of a type and schema that this version knows."""


def _structs() -> dict[tuple[str, int], type[Any]]:
    newest = {(struct.__name__, struct.SCHEMA): struct for struct in get_args(Event)}
    return newest | {(struct.TYPE, struct.SCHEMA): struct for struct in get_args(EarlierEvent)}


_DECODERS: Final[dict[tuple[str, int], msgspec.json.Decoder[Any]]] = {
    name: msgspec.json.Decoder(struct) for name, struct in _structs().items()
}
_ENCODER: Final = msgspec.json.Encoder()


def known_types() -> tuple[tuple[str, int], ...]:
    """Every (type, schema) that `decode` understands, sorted."""
    return tuple(sorted(_DECODERS))


def encode(event: Event) -> bytes:
    """The payload of an event: UTF-8 JSON, written once and never re-encoded.

    Raises ValueError where it is larger than PAYLOAD_BYTES_MAX.
    """
    payload = _ENCODER.encode(event)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"{type(event).__name__}: payload of {len(payload)} bytes is too large")
    return payload


def decode(row: Recorded) -> Event:
    """The event of a stored row, in its newest schema. Raises UndecodableEvent."""
    decoder = _DECODERS.get((row.type, row.schema))
    if decoder is None:
        raise UndecodableEvent(f"{row.type} schema {row.schema} is not known to this version")
    try:
        event = decoder.decode(row.payload)
    except msgspec.DecodeError as error:
        raise UndecodableEvent(f"{row.type} at {row.stream} {row.version}: {error}") from error
    return event.upcast() if isinstance(event, Earlier) else event
