"""Which events move posted points, and the line that each writes. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

from backend.ledger.account import Account
from schemas.event import Recorded
from schemas.ids import person_stream
from schemas.ledger import (
    GiftTaken,
    HoldReleased,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanRenewed,
    PointsCorrected,
    PointsGranted,
    ReleaseReason,
    UsageLate,
)


class Kind(StrEnum):
    GRANT = "grant"
    GIFT = "gift"
    INVITATION = "invitation"
    PLAN_BUY = "plan_buy"
    PLAN_RENEW = "plan_renew"
    PLAN_CHANGE = "plan_change"
    SETTLE = "settle"
    CORRECT = "correct"
    LATE = "late"


class Swept(msgspec.Struct, frozen=True, gc=False):
    """A request that a sweep ended: what its late usage will not say again."""

    stream: str
    request_id: str
    key: int
    model: str


class Before(msgspec.Struct, frozen=True, gc=False):
    """What was known when an event came."""

    account: Account
    swept: Swept | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What an event says of a movement; `amount_upt` is signed. One of zero becomes no line."""

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
    key: int | None = None
    channel: int | None = None
    source: str | None = None
    """The stream that granted points come from: a code's, or the invited person's."""
    gift_type: str | None = None
    plan_level: int | None = None
    plan_version: int | None = None
    plan_months: int | None = None
    credit_upt: int | None = None
    """What a change of plan gave back for unused time; it is in the amount."""


class StatementRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A row of `statement`, in the order in which the audit's query has the columns."""

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
    key: int | None = None
    channel: int | None = None
    source: str | None = None
    gift_type: str | None = None
    plan_level: int | None = None
    plan_version: int | None = None
    plan_months: int | None = None
    credit_upt: int | None = None


class AccountRow(msgspec.Struct, frozen=True, gc=False):
    stream: str
    state: msgspec.Raw


_SAID: Final = tuple(
    name for name in Entry.__struct_fields__ if name in StatementRow.__struct_fields__
)


def granted(before: Before, event: PointsGranted) -> Entry:
    return Entry(
        Kind.GRANT,
        event.amount_upt,
        grant_kind=event.kind,
        actor=event.actor,
        source=event.source or None,
    )


def gifted(before: Before, event: GiftTaken) -> Entry:
    return Entry(Kind.GIFT, event.amount_upt, source=event.source, gift_type=event.type)


def rewarded(before: Before, event: InvitationRewarded) -> Entry:
    return Entry(Kind.INVITATION, event.amount_upt, source=person_stream(event.invited))


def corrected(before: Before, event: PointsCorrected) -> Entry:
    return Entry(
        Kind.CORRECT,
        event.amount_upt,
        actor=event.actor,
        explains_event_id=event.corrects_event_id,
    )


def bought(before: Before, event: PlanBought) -> Entry:
    return _plan(Kind.PLAN_BUY, -event.segment.paid_upt, event)


def renewed(before: Before, event: PlanRenewed) -> Entry:
    return _plan(Kind.PLAN_RENEW, -event.segment.paid_upt, event)


def changed(before: Before, event: PlanChanged) -> Entry:
    """Both movements of a change in one line: the credit for the old, the price of the new."""
    amount_upt = event.credit_upt - event.segment.paid_upt
    return _plan(Kind.PLAN_CHANGE, amount_upt, event, event.credit_upt)


def settled(before: Before, event: HoldSettled) -> Entry:
    """The charge; key and asked model are known from the hold, which this event ends."""
    hold = before.account.holds.get(event.request_id)
    return Entry(
        Kind.SETTLE,
        -event.amount_upt,
        request_id=event.request_id,
        model=event.price.model if hold is None else hold.model,
        price_model=event.price.model,
        price_version=event.price.version,
        basis=event.basis,
        swept=event.swept,
        key=None if hold is None else hold.key,
        channel=event.served.channel,
    )


def late(before: Before, event: UsageLate) -> Entry:
    swept = before.swept
    return Entry(
        Kind.LATE,
        -event.amount_upt,
        request_id=event.request_id,
        model=event.price.model if swept is None else swept.model,
        price_model=event.price.model,
        price_version=event.price.version,
        basis=event.basis,
        explains_event_id=event.sweep_event_id,
        key=None if swept is None else swept.key,
        channel=event.served.channel,
    )


def swept_by(stream: str, before: Account, event: object) -> Swept | None:
    """What late usage may follow, if the event is a sweep's."""
    match event:
        case HoldSettled(swept=True) | HoldReleased(reason=ReleaseReason.SWEPT):
            hold = before.holds.get(event.request_id)
            return None if hold is None else Swept(stream, event.request_id, hold.key, hold.model)
        case _:
            return None


def row_of(entry: Entry, row: Recorded, balance_upt: int) -> StatementRow:
    """The line of an entry; `balance_upt` is what is posted after it."""
    return StatementRow(
        stream=row.stream,
        version=row.version,
        balance_upt=balance_upt,
        at_us=row.at_us,
        event_id=row.event_id,
        command_id=row.command_id,
        shard=row.shard,
        **{name: getattr(entry, name) for name in _SAID},
    )


def _plan(
    kind: Kind,
    amount_upt: int,
    event: PlanBought | PlanRenewed | PlanChanged,
    credit_upt: int | None = None,
) -> Entry:
    return Entry(
        kind,
        amount_upt,
        plan_level=event.plan.level,
        plan_version=event.plan.version,
        plan_months=event.months,
        credit_upt=credit_upt,
    )
