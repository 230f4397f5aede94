"""The decision about a correction: a new entry that points at an old one. Pure."""

from __future__ import annotations

from uuid import UUID

import msgspec

from backend.journal.commands import Accept, Decision, Refuse
from backend.ledger.account import Account
from backend.ledger.refusals import MissingPoints, NoSuchAccount, TooMuch
from schemas.ledger import (
    GiftTaken,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanRenewed,
    PointsCorrected,
    PointsGranted,
    UsageLate,
)
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from schemas.registry import Event


class NoSuchEntry(msgspec.Struct, frozen=True):
    """The account has no such event, or it is one that moved no points."""


class CorrectionAsked(msgspec.Struct, frozen=True):
    amount_upt: MicroPoints
    """What is added; negative: taken."""
    corrects_event_id: UUID
    actor: str


def decide_correction(
    state: Account, version: int, asked: CorrectionAsked, entry: Event | None
) -> Decision:
    """Adds or takes points because of an entry of the same account, None where it has none.

    Never below zero (MissingPoints), what open requests hold left alone; TooMuch for an amount of
    nothing, or one that no account holds.
    """
    if version == 0:
        return Refuse(NoSuchAccount())
    if entry is None or moved_upt(entry) == 0:
        return Refuse(NoSuchEntry())
    issued_upt = state.issued_upt + asked.amount_upt
    if asked.amount_upt == 0 or max(abs(asked.amount_upt), issued_upt) > AMOUNT_UPT_MAX:
        return Refuse(TooMuch())
    missing_upt = -(state.available_upt + asked.amount_upt)
    if missing_upt > 0:
        return Refuse(MissingPoints(MicroPoints(missing_upt)))
    event = PointsCorrected(asked.amount_upt, asked.corrects_event_id, asked.actor)
    return Accept(((0, event),))


def moved_upt(event: Event) -> int:
    """By how much an event of an account changed what is posted; 0 for all others."""
    match event:
        case PointsGranted() | PointsCorrected() | GiftTaken() | InvitationRewarded():
            return event.amount_upt
        case HoldSettled() | UsageLate():
            return -event.amount_upt
        case PlanBought() | PlanRenewed():
            return -event.segment.paid_upt
        case PlanChanged():
            return event.credit_upt - event.segment.paid_upt
        case _:
            return 0
