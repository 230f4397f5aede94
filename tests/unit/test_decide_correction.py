"""Corrections: a new entry because of an old one, never below zero."""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.journal.commands import Accept, Refuse
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.decide_correction import (
    CorrectionAsked,
    NoSuchEntry,
    decide_correction,
    moved_upt,
)
from backend.ledger.refusals import MissingPoints, NoSuchAccount, TooMuch
from schemas.ledger import (
    AccountOpened,
    GiftTaken,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanRenewed,
    PointsCorrected,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import AMOUNT_UPT_MAX
from schemas.plans import PlanRef, Segment
from schemas.usage import Basis, Usage
from tests.given import AT_US, POINT, REF, granted_event, held_event, new_request, with_upt

ENTRY = UUID(int=7)
GRANT = granted_event(POINT)


def decided(state: Account, amount_upt: int, entry: Any = GRANT, version: int = 2) -> Any:
    return decide_correction(state, version, CorrectionAsked(amount_upt, ENTRY, "cli"), entry)


def settle_of(amount_upt: int) -> HoldSettled:
    return HoldSettled(new_request(), amount_upt, Usage(), Basis.REPORTED, REF, Served())


@given(st.integers(0, 10 * POINT), st.integers(0, 10 * POINT), st.integers(-20 * POINT, 20 * POINT))
def test_a_correction_lands_exactly_where_the_balance_stays_at_zero_or_above(
    granted_upt: int, held_upt: int, amount_upt: int
) -> None:
    held_upt = min(granted_upt, held_upt)
    state = with_upt(granted_upt, held_event(new_request(), held_upt))
    decision = decided(state, amount_upt)
    if amount_upt == 0:
        assert decision == Refuse(TooMuch())
    elif state.available_upt + amount_upt < 0:
        assert decision == Refuse(MissingPoints(-amount_upt - state.available_upt))
    else:
        event = PointsCorrected(amount_upt, ENTRY, "cli")
        assert decision == Accept(((0, event),))
        after = ACCOUNT.apply(state, event, 9, AT_US)
        assert after.available_upt == state.available_upt + amount_upt


def test_an_account_that_was_never_opened_is_not_corrected() -> None:
    assert decided(Account(), 5, version=0) == Refuse(NoSuchAccount())


@pytest.mark.parametrize("amount_upt", [0, AMOUNT_UPT_MAX, AMOUNT_UPT_MAX + 1, -AMOUNT_UPT_MAX - 1])
def test_what_no_account_holds_is_refused(amount_upt: int) -> None:
    assert decided(with_upt(POINT), amount_upt) == Refuse(TooMuch())


@pytest.mark.parametrize(
    "entry",
    [None, AccountOpened(1), held_event("r", 5), settle_of(0), ShortfallRecorded("r", 5)],
)
def test_what_moved_no_points_is_no_entry(entry: Any) -> None:
    assert decided(with_upt(POINT), 5, entry) == Refuse(NoSuchEntry())


PAID = Segment(0, 1, 30)


@pytest.mark.parametrize(
    ("entry", "amount_upt"),
    [
        (GRANT, POINT),
        (settle_of(9), -9),
        (UsageLate("r", ENTRY, 4, 1, Usage(), Basis.REPORTED, REF, Served()), -4),
        (PointsCorrected(-3, ENTRY, "cli"), -3),
        (GiftTaken("new year", 8, "code:1"), 8),
        (InvitationRewarded(2, 1), 2),
        (PlanBought(PlanRef(1, 1), 1, PAID, 0, "UTC"), -30),
        (PlanRenewed(PlanRef(1, 1), 1, PAID), -30),
        (PlanChanged(PlanRef(1, 1), 1, PAID, "UTC", 12, 0), -18),
    ],
)
def test_every_movement_can_be_corrected_and_says_by_how_much_it_moved(
    entry: Any, amount_upt: int
) -> None:
    assert moved_upt(entry) == amount_upt
    assert isinstance(decided(with_upt(POINT), 5, entry), Accept)
