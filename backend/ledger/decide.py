"""Decisions about points: pure functions from an account and a command to events or a refusal.

Who is let in is decided in `admission`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from backend.journal.commands import (
    Accept,
    Decision,
    LeaseClose,
    LeaseSweep,
    Refuse,
)
from backend.ledger.account import Account, Hold
from backend.ledger.refusals import (
    AlreadyOpen,
    MissingPoints,
    NoSuchAccount,
    NoSuchHold,
    TooMuch,
)
from schemas.ids import KeyId, PersonId, RequestId
from schemas.ledger import (
    AccountOpened,
    GrantKind,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsGranted,
    ReleaseReason,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from schemas.plans import PlanUse, Quota
from schemas.prices import PLAIN_TERMS, Price, PriceRef, Terms, cost_of
from schemas.usage import Basis, Usage


def decide_open(state: Account, version: int, person: PersonId) -> Decision:
    """Opens an account, once."""
    if version > 0:
        return Refuse(AlreadyOpen())
    return Accept(((0, AccountOpened(person)),))


def decide_grant(
    state: Account, version: int, amount_upt: MicroPoints, kind: GrantKind, actor: str
) -> Decision:
    """Adds points to an open account; amount > 0 and within what a balance may hold."""
    if version == 0:
        return Refuse(NoSuchAccount())
    if not 0 < amount_upt <= AMOUNT_UPT_MAX or state.issued_upt + amount_upt > AMOUNT_UPT_MAX:
        return Refuse(TooMuch())
    return Accept(((0, PointsGranted(amount_upt, kind, actor)),))


def decide_extend(state: Account, request_id: RequestId, wanted_upt: int) -> Decision:
    """Holds up to `wanted_upt` more for an answer that is longer than was held for."""
    hold = state.holds.get(request_id)
    if hold is None:
        return Refuse(NoSuchHold())
    amount_upt = min(wanted_upt, reach_upt(state, hold))
    if amount_upt <= 0:
        return Refuse(MissingPoints(MicroPoints(wanted_upt)))
    return Accept(((0, HoldExtended(request_id, MicroPoints(amount_upt))),))


class SettleAsked(msgspec.Struct, frozen=True):
    """What was consumed, on which basis and at which price version."""

    request_id: RequestId
    usage: Usage
    basis: Basis
    price: Price
    price_ref: PriceRef
    served: Served
    terms: Terms = PLAIN_TERMS
    """Of the hold; read only where the hold is gone: usage that comes after a sweep."""
    plan: PlanUse | None = None
    key: KeyId = KeyId(0)
    quota: Quota | None = None


def due_of(price: Price, usage: Usage, terms: Terms, plan: PlanUse | None) -> MicroPoints:
    """What a request owes: the cost of its usage, or nothing where a plan pays."""
    return MicroPoints(0) if plan is not None else cost_of(price, usage, terms)


def decide_settle(state: Account, asked: SettleAsked, sweep: LeaseSweep | None = None) -> Decision:
    """Ends a hold with its exact cost.

    A cost above the hold first takes what is available (HoldExtended); what then remains possible
    is a ShortfallRecorded, uncharged. I3, I4: one outcome, charged ≤ held.
    """
    hold = state.holds.get(asked.request_id)
    if hold is None:
        return Refuse(NoSuchHold())
    due_upt = due_of(asked.price, asked.usage, hold.terms, hold.plan)
    more_upt = min(max(0, due_upt - hold.amount_upt), reach_upt(state, hold))
    charged_upt = min(due_upt, hold.amount_upt + more_upt)
    events: list[Any] = []
    if more_upt > 0:
        events.append(HoldExtended(asked.request_id, MicroPoints(more_upt)))
    events.append(
        HoldSettled(
            request_id=asked.request_id,
            amount_upt=MicroPoints(charged_upt),
            usage=asked.usage,
            basis=asked.basis,
            price=asked.price_ref,
            served=asked.served,
            swept=sweep is not None,
            terms=hold.terms,
            plan=hold.plan,
        )
    )
    if due_upt > charged_upt:
        events.append(ShortfallRecorded(asked.request_id, MicroPoints(due_upt - charged_upt)))
    return Accept(_at_home(events), (sweep or LeaseClose(asked.request_id),))


def decide_release(
    state: Account,
    request_id: RequestId,
    reason: ReleaseReason,
    served: Served,
    sweep: LeaseSweep | None = None,
) -> Decision:
    """Ends a hold without a charge."""
    if request_id not in state.holds:
        return Refuse(NoSuchHold())
    event = HoldReleased(request_id, reason, served)
    return Accept(((0, event),), (sweep or LeaseClose(request_id),))


def decide_late(
    state: Account,
    version: int,
    asked: SettleAsked,
    sweep_event_id: UUID,
    accounted_upt: int,
) -> Decision:
    """Records real usage that came after a sweep, charging what is available of the difference.

    `accounted_upt` is what the sweep charged and what it recorded as fallen short.
    """
    if version == 0:
        return Refuse(NoSuchAccount())
    due_upt = max(0, due_of(asked.price, asked.usage, asked.terms, asked.plan) - accounted_upt)
    charged_upt = min(due_upt, within_quota_upt(state, asked.key, asked.quota))
    event = UsageLate(
        request_id=asked.request_id,
        sweep_event_id=sweep_event_id,
        amount_upt=MicroPoints(charged_upt),
        shortfall_upt=MicroPoints(due_upt - charged_upt),
        usage=asked.usage,
        basis=asked.basis,
        price=asked.price_ref,
        served=asked.served,
        terms=asked.terms,
        plan=asked.plan,
        key=asked.key,
        quota=asked.quota,
    )
    return Accept(((0, event),))


def reach_upt(state: Account, hold: Hold) -> int:
    """What may still be held for a request: all that is available, or left of its key's quota."""
    return within_quota_upt(state, hold.key, hold.quota)


def within_quota_upt(state: Account, key: int, quota: Quota | None) -> int:
    """What a key may spend of what is available."""
    if quota is None:
        return state.available_upt
    return max(0, min(state.available_upt, state.quota_left_upt(key, quota)))


def _at_home(events: Sequence[Any]) -> tuple[tuple[int, Any], ...]:
    return tuple((0, event) for event in events)
