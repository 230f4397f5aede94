"""What a writer is asked and what it answers. Decisions are pure; effects happen when they land."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec

from schemas.event import Recorded


class Standing(msgspec.Struct, frozen=True):
    """A stream as a decision sees it: version 0 and the empty state where nothing happened yet."""

    stream: str
    version: int
    state: Any


class LeaseOpen(msgspec.Struct, frozen=True):
    """Someone answers for this request until the lease runs out."""

    request_id: str
    seconds: int


class LeaseClose(msgspec.Struct, frozen=True):
    request_id: str


class LeaseSweep(msgspec.Struct, frozen=True):
    """Lands only while the lease has this generation and has run out, by the database's clock."""

    request_id: str
    generation: int


Lease = LeaseOpen | LeaseClose | LeaseSweep


class Accept(msgspec.Struct, frozen=True):
    """Append these: (index into the command's streams, event) pairs, in order."""

    events: tuple[tuple[int, Any], ...]
    leases: tuple[Lease, ...] = ()


class Refuse(msgspec.Struct, frozen=True):
    """A business refusal: a value, not an exception."""

    reason: Any


Decision = Accept | Refuse
Decide = Callable[[tuple[Standing, ...], int], Decision]
"""`decide(standings, at_us)`: one standing per stream of the command, and the decision's time."""

NO_BODY: Final = b""


class Command(msgspec.Struct, frozen=True):
    """One decision to be taken and recorded at most once under `command_id`.

    Every stream read is an expected version, changed or not; the first stream is the command's
    home.
    """

    command_id: UUID
    streams: tuple[str, ...]
    decide: Decide
    body_hash: bytes = NO_BODY
    urgent: bool = False
    """Settles and releases: they keep a place in the queue when it is full of newcomers."""
    tries_once: bool = False
    """Where it does not land at first it is given up (Refused with LostRace), not decided again."""


class LostRace(msgspec.Struct, frozen=True):
    """Someone else moved the streams, or the lease, between decision and append."""


class Landed(msgspec.Struct, frozen=True):
    """The command's events are committed. `versions`: last version per stream of the command."""

    events: tuple[Any, ...]
    versions: tuple[tuple[str, int], ...]
    states: tuple[Any, ...] = ()
    """The streams' states after it, where this very call appended it; else empty."""


class Refused(msgspec.Struct, frozen=True):
    reason: Any


class AlreadyDone(msgspec.Struct, frozen=True):
    """The log had this command id from an earlier call; `rows` are its events on its home
    stream.
    """

    body_hash: bytes
    rows: tuple[Recorded, ...]


Outcome = Landed | Refused | AlreadyDone
