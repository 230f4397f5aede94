"""The fold of an account: its totals after each event, and the histories that it refuses."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from backend.ledger.account import ACCOUNT, HOUR_US, Account, Hold, ImpossibleHistory
from schemas.ids import KeyId, PersonId, RequestId
from schemas.ledger import (
    AccountOpened,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsCorrected,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import MicroPoints
from schemas.usage import Basis, Usage
from tests.given import AT_US, MODEL, REF, folded, granted_event, held_event, with_upt

A, B = RequestId("a"), RequestId("b")


def settled(request_id: str, amount_upt: int) -> HoldSettled:
    return HoldSettled(
        RequestId(request_id), MicroPoints(amount_upt), Usage(), Basis.REPORTED, REF, Served()
    )


def released(request_id: str) -> HoldReleased:
    return HoldReleased(RequestId(request_id), ReleaseReason.CLIENT_LEFT, Served())


def extended(request_id: str, amount_upt: int) -> HoldExtended:
    return HoldExtended(RequestId(request_id), MicroPoints(amount_upt))


def late(amount_upt: int, shortfall_upt: int = 0) -> UsageLate:
    return UsageLate(
        request_id=A,
        sweep_event_id=UUID(int=1),
        amount_upt=MicroPoints(amount_upt),
        shortfall_upt=MicroPoints(shortfall_upt),
        usage=Usage(),
        basis=Basis.REPORTED,
        price=REF,
        served=Served(),
    )


def refused() -> RequestRefused:
    return RequestRefused(
        A, RefusalReason.INSUFFICIENT_POINTS, KeyId(1), MODEL, REF, MicroPoints(1)
    )


def test_a_hold_takes_from_available_and_leaves_posted() -> None:
    state = with_upt(100, held_event(A, 30))
    assert (state.posted_upt, state.held_upt, state.available_upt) == (100, 30, 70)
    assert state.holds == {A: Hold(30, MODEL, 1, 100, AT_US, KeyId(1))}


def test_a_settle_charges_and_gives_the_rest_back() -> None:
    state = with_upt(100, held_event(A, 30), settled(A, 12))
    assert (state.posted_upt, state.held_upt, state.available_upt) == (88, 0, 88)
    assert (state.issued_upt, state.charged_upt, state.holds) == (100, 12, {})


def test_a_release_gives_everything_back() -> None:
    assert with_upt(100, held_event(A, 30), released(A)) == with_upt(100)


def test_an_extension_widens_its_own_hold() -> None:
    state = with_upt(100, held_event(A, 30), held_event(B, 10), extended(A, 5))
    assert (state.held_upt, state.available_upt) == (45, 55)
    assert [hold.amount_upt for hold in state.holds.values()] == [35, 10]


def test_late_usage_and_shortfalls_are_counted_apart() -> None:
    state = with_upt(100, late(7, 3), ShortfallRecorded(A, MicroPoints(2)))
    assert (state.charged_upt, state.shortfall_upt, state.available_upt) == (7, 5, 93)


def test_a_correction_may_go_down_to_zero_and_no_further() -> None:
    assert with_upt(10, PointsCorrected(MicroPoints(-10), UUID(int=1), "cli")).available_upt == 0
    with pytest.raises(ImpossibleHistory, match="I2"):
        with_upt(10, PointsCorrected(MicroPoints(-11), UUID(int=1), "cli"))


def test_refusals_are_counted_by_the_hour() -> None:
    state = with_upt(0)
    at = [AT_US, AT_US + 1, AT_US + HOUR_US]
    counts: list[int] = []
    for version, at_us in enumerate(at, 2):
        state = ACCOUNT.apply(state, refused(), version, at_us)
        counts.append(state.refusals)
    assert counts == [1, 2, 1]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([held_event(A, 101)], id="held more than available"),
        pytest.param([held_event(A, 60), held_event(B, 41)], id="two holds too many"),
        pytest.param([held_event(A, 1), held_event(A, 1)], id="held twice"),
        pytest.param([held_event(A, -1)], id="negative hold"),
        pytest.param([settled(A, 0)], id="settled without a hold"),
        pytest.param([released(A)], id="released without a hold"),
        pytest.param([extended(A, 1)], id="extended without a hold"),
        pytest.param([held_event(A, 5), settled(A, 6)], id="charged more than held"),
        pytest.param([held_event(A, 5), settled(A, -1)], id="negative charge"),
        pytest.param([held_event(A, 5), settled(A, 5), released(A)], id="two outcomes"),
        pytest.param([held_event(A, 5), released(A), settled(A, 5)], id="charged after release"),
        pytest.param([held_event(A, 5), settled(A, 5), settled(A, 5)], id="settled twice"),
        pytest.param([held_event(A, 99), extended(A, 2)], id="extended beyond available"),
        pytest.param([held_event(A, 9), extended(A, -5)], id="shrinking extension"),
        pytest.param([late(101)], id="late beyond available"),
        pytest.param([late(-1)], id="late usage that pays back"),
        pytest.param([late(0, -1)], id="negative late shortfall"),
        pytest.param([ShortfallRecorded(A, MicroPoints(-1))], id="negative shortfall"),
        pytest.param([granted_event(-1)], id="negative grant"),
        pytest.param([AccountOpened(PersonId(1))], id="opened twice"),
    ],
)
def test_an_impossible_history_is_refused(events: list[Any]) -> None:
    with pytest.raises(ImpossibleHistory):
        with_upt(100, *events)


@pytest.mark.parametrize("event", [granted_event(1), refused(), late(0)])
def test_nothing_comes_before_the_account_is_opened(event: Any) -> None:
    with pytest.raises(ImpossibleHistory):
        folded([event])


def test_apply_leaves_the_state_it_was_given_as_it_was() -> None:
    before = with_upt(100, held_event(A, 30))
    stored = ACCOUNT.encode(before)
    for version, event in enumerate([held_event(B, 1), settled(A, 1)], 4):
        ACCOUNT.apply(before, event, version, AT_US)
    assert ACCOUNT.encode(before) == stored


def test_a_state_has_one_stored_form() -> None:
    state = with_upt(100, held_event(B, 30), held_event(A, 1), extended(B, 2))
    stored = ACCOUNT.encode(state)
    assert ACCOUNT.decode(stored) == state
    assert ACCOUNT.encode(ACCOUNT.decode(stored)) == stored
    assert stored == (
        b'{"person":1,"issued_upt":100,"held_upt":33,'
        b'"holds":{"b":[32,"model",1,100,1700000000000000,1,{},null,null],'
        b'"a":[1,"model",1,100,1700000000000000,1,{},null,null]}}'
    )
    assert ACCOUNT.encode(Account()) == b"{}"
