"""Which events move posted points, and the line that each writes. Pure."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import msgspec

from backend.ledger.account import Account
from schemas.event import Recorded
from schemas.ledger import HoldSettled, PointsCorrected, PointsGranted, UsageLate


class Kind(StrEnum):
    GRANT = "grant"
    SETTLE = "settle"
    CORRECT = "correct"
    LATE = "late"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What an event says of a movement; `amount_upt` is signed and never zero."""

    kind: Kind
    amount_upt: int
    request_id: str | None = None
    model: str | None = None
    price_model: str | None = None
    price_version: int | None = None
    basis: str | None = None
    swept: bool = False
    grant_kind: str | None = None
    actor: str | None = None
    explains_event_id: UUID | None = None
    """The event that a correction corrects, or the sweep that late usage follows."""


class StatementRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    stream: str
    version: int
    kind: str
    amount_upt: int
    balance_upt: int
    at_us: int
    event_id: UUID
    command_id: UUID
    shard: int
    swept: bool
    request_id: str | None = None
    model: str | None = None
    price_model: str | None = None
    price_version: int | None = None
    basis: str | None = None
    grant_kind: str | None = None
    actor: str | None = None
    explains_event_id: UUID | None = None


class AccountRow(msgspec.Struct, frozen=True, gc=False):
    stream: str
    state: msgspec.Raw


def granted(before: Account, event: PointsGranted) -> Entry:
    return Entry(Kind.GRANT, event.amount_upt, grant_kind=event.kind, actor=event.actor)


def corrected(before: Account, event: PointsCorrected) -> Entry:
    return Entry(
        Kind.CORRECT,
        event.amount_upt,
        actor=event.actor,
        explains_event_id=event.corrects_event_id,
    )


def settled(before: Account, event: HoldSettled) -> Entry:
    """The charge; the asked model is known from the hold, which this event ends."""
    hold = before.holds.get(event.request_id)
    return Entry(
        Kind.SETTLE,
        -event.amount_upt,
        request_id=event.request_id,
        model=event.price.model if hold is None else hold.model,
        price_model=event.price.model,
        price_version=event.price.version,
        basis=event.basis,
        swept=event.swept,
    )


def late(before: Account, event: UsageLate) -> Entry:
    return Entry(
        Kind.LATE,
        -event.amount_upt,
        request_id=event.request_id,
        model=event.price.model,
        price_model=event.price.model,
        price_version=event.price.version,
        basis=event.basis,
        explains_event_id=event.sweep_event_id,
    )


def row_of(entry: Entry, row: Recorded, balance_upt: int) -> StatementRow:
    """The line of an entry; `balance_upt` is what is posted after it."""
    return StatementRow(
        stream=row.stream,
        version=row.version,
        kind=entry.kind,
        amount_upt=entry.amount_upt,
        balance_upt=balance_upt,
        at_us=row.at_us,
        event_id=row.event_id,
        command_id=row.command_id,
        shard=row.shard,
        swept=entry.swept,
        request_id=entry.request_id,
        model=entry.model,
        price_model=entry.price_model,
        price_version=entry.price_version,
        basis=entry.basis,
        grant_kind=entry.grant_kind,
        actor=entry.actor,
        explains_event_id=entry.explains_event_id,
    )
