"""Decisions about points. Given a state, when commanded, then events, or a refusal."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from backend.journal.commands import Accept, Decision, LeaseClose, LeaseOpen, LeaseSweep, Refuse
from backend.ledger.account import HOUR_US, REFUSALS_PER_HOUR, Account
from backend.ledger.admission import OUTPUT_HELD_MAX, decide_hold
from backend.ledger.decide import (
    decide_extend,
    decide_grant,
    decide_late,
    decide_open,
    decide_release,
    decide_settle,
)
from backend.ledger.refusals import AlreadyOpen, MissingPoints, NoSuchAccount, NoSuchHold, TooMuch
from schemas.ids import PersonId, RequestId
from schemas.ledger import (
    AccountOpened,
    GrantKind,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsGranted,
    PointsHeld,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from schemas.prices import Free, PerToken, Price
from schemas.usage import Usage
from tests.given import (
    A_POINT_A_CALL,
    AT_US,
    PER_TOKEN,
    POINT,
    REF,
    held_event,
    hold_asked,
    settle_asked,
    with_upt,
)

R = RequestId("r")
SWEEP = LeaseSweep("r", 3)
SWEPT = UUID(int=9)


def events_of(decision: Decision) -> list[Any]:
    assert isinstance(decision, Accept), decision
    assert {index for index, _ in decision.events} == {0}
    return [event for _, event in decision.events]


def held(state: Account, price: Price = A_POINT_A_CALL, **more: Any) -> PointsHeld:
    event = events_of(decide_hold(state, 2, hold_asked(R, price, **more), AT_US))[0]
    assert isinstance(event, PointsHeld)
    return event


def test_an_account_is_opened_once() -> None:
    assert events_of(decide_open(Account(), 0, PersonId(7))) == [AccountOpened(PersonId(7))]
    assert decide_open(with_upt(0), 1, PersonId(7)) == Refuse(AlreadyOpen())


def grant(state: Account, version: int, amount_upt: int) -> Decision:
    return decide_grant(state, version, MicroPoints(amount_upt), GrantKind.OPERATOR, "cli")


def test_a_grant_is_recorded_with_who_gave_it() -> None:
    expected = PointsGranted(MicroPoints(5), GrantKind.OPERATOR, "cli")
    assert events_of(grant(with_upt(0), 1, 5)) == [expected]


@pytest.mark.parametrize("amount_upt", [0, -1, AMOUNT_UPT_MAX + 1])
def test_a_grant_of_nothing_or_of_too_much_is_refused(amount_upt: int) -> None:
    assert grant(with_upt(0), 1, amount_upt) == Refuse(TooMuch())


def test_grants_never_add_up_to_more_than_an_account_may_hold() -> None:
    full = with_upt(AMOUNT_UPT_MAX)
    assert grant(full, 2, 1) == Refuse(TooMuch())
    assert isinstance(grant(with_upt(AMOUNT_UPT_MAX - 1), 2, 1), Accept)


def test_nobody_without_an_account_is_granted_or_held_anything() -> None:
    assert grant(Account(), 0, 5) == Refuse(NoSuchAccount())
    assert decide_hold(Account(), 0, hold_asked(R), AT_US) == Refuse(NoSuchAccount())
    assert decide_hold(Account(), 0, hold_asked(R, Free()), AT_US) == Refuse(NoSuchAccount())


def test_a_hold_opens_its_lease() -> None:
    decision = decide_hold(with_upt(5 * POINT), 2, hold_asked(R, lease_s=17), AT_US)
    assert isinstance(decision, Accept)
    assert decision.leases == (LeaseOpen(R, 17),)
    assert held(with_upt(5 * POINT)).amount_upt == POINT


def test_a_hold_is_the_input_bound_and_the_outputs_that_were_asked_for() -> None:
    rich = with_upt(10**12)
    assert held(rich, PER_TOKEN, input_bound=50, output_limit=10).amount_upt == 50 * 100 + 10 * 200
    four = held(rich, PER_TOKEN, input_bound=50, output_limit=10, choices=4)
    assert (four.output_bound, four.amount_upt) == (40, 50 * 100 + 40 * 200)
    unlimited = held(rich, PER_TOKEN, input_bound=0)
    assert unlimited.output_bound == OUTPUT_HELD_MAX
    long = held(rich, PER_TOKEN, input_bound=0, output_limit=100_000, choices=2)
    assert long.output_bound == 2 * OUTPUT_HELD_MAX


def test_cached_input_that_costs_more_than_input_is_what_is_held_for() -> None:
    price = PerToken(input_npt=1_000, output_npt=0, cached_input_npt=3_000)
    assert held(with_upt(10**9), price, input_bound=100).amount_upt == 300


def test_a_hold_takes_at_most_what_is_available() -> None:
    state = with_upt(300_000)
    assert held(state, PER_TOKEN, input_bound=100_000).amount_upt == 300_000


def test_the_minimum_lets_in_and_one_micro_point_less_does_not() -> None:
    asked = hold_asked(R, PER_TOKEN)
    assert isinstance(events_of(decide_hold(with_upt(300_000), 2, asked, AT_US))[0], PointsHeld)
    event = events_of(decide_hold(with_upt(299_999), 2, asked, AT_US))[0]
    assert event == RequestRefused(
        R, RefusalReason.INSUFFICIENT_POINTS, asked.key.key, asked.model, REF, MicroPoints(1)
    )


def test_what_others_hold_does_not_count_towards_the_minimum() -> None:
    state = with_upt(2 * POINT, held_event("other", POINT + 1))
    event = events_of(decide_hold(state, 3, hold_asked(R), AT_US))[0]
    assert isinstance(event, RequestRefused)
    assert event.missing_upt == 1


def test_a_free_model_is_held_for_nothing_on_an_empty_account() -> None:
    decision = decide_hold(with_upt(0), 1, hold_asked(R, Free()), AT_US)
    assert events_of(decision)[0].amount_upt == 0
    assert isinstance(decision, Accept)
    assert decision.leases


def test_refusals_are_recorded_up_to_the_cap_of_the_hour_and_answered_beyond() -> None:
    hour = AT_US // HOUR_US
    full = Account(person=1, refusals_hour=hour, refusals=REFUSALS_PER_HOUR)
    assert decide_hold(full, 2, hold_asked(R), AT_US) == Refuse(MissingPoints(MicroPoints(POINT)))
    next_hour = decide_hold(full, 2, hold_asked(R), AT_US + HOUR_US)
    assert isinstance(events_of(next_hour)[0], RequestRefused)
    almost = Account(person=1, refusals_hour=hour, refusals=REFUSALS_PER_HOUR - 1)
    assert isinstance(decide_hold(almost, 2, hold_asked(R), AT_US), Accept)


def test_a_refusal_opens_no_lease() -> None:
    decision = decide_hold(with_upt(0), 1, hold_asked(R), AT_US)
    assert isinstance(decision, Accept)
    assert decision.leases == ()


def test_an_extension_takes_what_is_wanted_or_what_is_left() -> None:
    state = with_upt(100, held_event(R, 40))
    assert events_of(decide_extend(state, R, 10)) == [HoldExtended(R, MicroPoints(10))]
    assert events_of(decide_extend(state, R, 61)) == [HoldExtended(R, MicroPoints(60))]


def test_an_extension_of_nothing_is_refused() -> None:
    spent = with_upt(40, held_event(R, 40))
    assert decide_extend(spent, R, 5) == Refuse(MissingPoints(MicroPoints(5)))
    assert isinstance(decide_extend(with_upt(100, held_event(R, 1)), R, 0), Refuse)
    assert isinstance(decide_extend(with_upt(100, held_event(R, 1)), R, -5), Refuse)


def test_extending_settling_or_releasing_needs_an_open_hold() -> None:
    state = with_upt(100)
    assert decide_extend(state, R, 1) == Refuse(NoSuchHold())
    assert decide_settle(state, settle_asked(R)) == Refuse(NoSuchHold())
    nothing = decide_release(state, R, ReleaseReason.CLIENT_LEFT, Served())
    assert nothing == Refuse(NoSuchHold())


def tokens(output: int) -> Any:
    """A settlement of 200 micro-points for each output token."""
    return settle_asked(R, PER_TOKEN, Usage(output=output))


def test_a_settle_below_the_hold_charges_the_exact_cost() -> None:
    decision = decide_settle(with_upt(1_000, held_event(R, 500)), tokens(2))
    (event,) = events_of(decision)
    assert isinstance(event, HoldSettled)
    assert (event.amount_upt, event.swept) == (400, False)
    assert isinstance(decision, Accept)
    assert decision.leases == (LeaseClose(R),)


def test_a_settle_above_the_hold_first_takes_what_is_available() -> None:
    extended, settled = events_of(decide_settle(with_upt(1_000, held_event(R, 500)), tokens(4)))
    assert extended == HoldExtended(R, MicroPoints(300))
    assert settled.amount_upt == 800


def test_what_nothing_pays_for_is_a_shortfall_beside_the_charge() -> None:
    events = events_of(decide_settle(with_upt(1_000, held_event(R, 500)), tokens(6)))
    assert [type(event) for event in events] == [HoldExtended, HoldSettled, ShortfallRecorded]
    assert [event.amount_upt for event in events] == [500, 1_000, 200]


def test_an_emptied_account_settles_its_hold_and_records_the_rest() -> None:
    events = events_of(decide_settle(with_upt(500, held_event(R, 500)), tokens(3)))
    assert [type(event) for event in events] == [HoldSettled, ShortfallRecorded]
    assert [event.amount_upt for event in events] == [500, 100]


def test_a_sweep_says_so_and_is_guarded_by_the_lease_it_saw() -> None:
    state = with_upt(1_000, held_event(R, 500))
    settled = decide_settle(state, tokens(1), SWEEP)
    assert isinstance(settled, Accept)
    assert settled.leases == (SWEEP,)
    assert events_of(settled)[0].swept
    released = decide_release(state, R, ReleaseReason.SWEPT, Served(), SWEEP)
    assert isinstance(released, Accept)
    assert released.leases == (SWEEP,)


def test_a_release_charges_nothing_and_closes_the_lease() -> None:
    decision = decide_release(
        with_upt(9, held_event(R, 5)), R, ReleaseReason.CLIENT_LEFT, Served(status=499)
    )
    expected = HoldReleased(R, ReleaseReason.CLIENT_LEFT, Served(status=499))
    assert events_of(decision) == [expected]
    assert isinstance(decision, Accept)
    assert decision.leases == (LeaseClose(R),)


@pytest.mark.parametrize(
    ("available_upt", "by_sweep_upt", "charged_upt", "shortfall_upt"),
    [(5_000, 0, 1_000, 0), (5_000, 400, 600, 0), (100, 400, 100, 500), (0, 0, 0, 1_000)],
)
def test_late_usage_charges_what_is_available_of_what_the_sweep_did_not(
    available_upt: int, by_sweep_upt: int, charged_upt: int, shortfall_upt: int
) -> None:
    decision = decide_late(with_upt(available_upt), 2, tokens(5), SWEPT, by_sweep_upt)
    (event,) = events_of(decision)
    assert isinstance(event, UsageLate)
    assert (event.amount_upt, event.shortfall_upt) == (charged_upt, shortfall_upt)
    assert event.sweep_event_id == SWEPT
    assert isinstance(decision, Accept)
    assert decision.leases == ()


def test_late_usage_that_cost_less_than_the_sweep_charged_moves_nothing() -> None:
    (event,) = events_of(decide_late(with_upt(5_000), 2, tokens(1), SWEPT, 900))
    assert (event.amount_upt, event.shortfall_upt) == (0, 0)


def test_late_usage_of_nobody_is_refused() -> None:
    assert decide_late(Account(), 0, tokens(1), SWEPT, 0) == Refuse(NoSuchAccount())
