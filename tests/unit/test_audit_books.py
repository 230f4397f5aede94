"""The audit's second set of books: each invariant it checks, broken once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from backend.ledger.account import Account
from projections.audit.books import Books
from projections.audit.report import (
    CONSERVATION,
    NO_OVERDRAFT,
    ONE_OUTCOME,
    PROVENANCE,
    SETTLE_BOUNDS,
    Findings,
)
from projections.verifying import Line
from schemas.catalog import PriceSet
from schemas.event import Recorded
from schemas.ids import RequestId, late_command_id, outcome_command_id
from schemas.ledger import (
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsCorrected,
    ReleaseReason,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import MicroPoints
from schemas.usage import Basis, Usage
from tests.given import (
    MODEL,
    PER_TOKEN,
    POINT,
    REF,
    granted_event,
    held_event,
    new_request,
    with_upt,
)

USAGE = Usage(input=100, output=100)
COST_UPT = 30_000
"""Of USAGE at PER_TOKEN."""
REQUEST = new_request()
SWEEP = UUID(int=77)


class Passing:
    """Events as they pass the books."""

    def __init__(self, *, priced: bool = True) -> None:
        self.findings = Findings()
        self.books = Books(self.findings)
        self._versions: dict[str, int] = {}
        if priced:
            self.pass_on(PriceSet(PER_TOKEN), f"price:{MODEL}")
        self.pass_on(granted_event(POINT))

    def pass_on(
        self,
        event: Any,
        stream: str = "account:1",
        command_id: UUID | None = None,
        event_id: UUID | None = None,
    ) -> Passing:
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        row = Recorded(
            1, version, version, event_id or UUID(int=version), command_id or UUID(int=version),
            "", 0, stream, version, type(event).__name__, 1, 0, b"", b"", b"",
        )  # fmt: skip
        self.books.observe(row, event, Line(stream, b"", None, ""))
        return self

    def held(self, amount_upt: int = COST_UPT, request: str = REQUEST) -> Passing:
        return self.pass_on(held_event(request, amount_upt))

    def ended(self, event: Any, event_id: UUID | None = None) -> Passing:
        return self.pass_on(
            event, command_id=outcome_command_id(RequestId(event.request_id)), event_id=event_id
        )

    def failed(self) -> dict[str, tuple[int, int]]:
        """Check → (violations, version of the first)."""
        self.books.finish()
        return {
            check.id: (check.violations, check.first.version)
            for check in self.findings.checks()
            if check.first is not None
        }


def settled(amount_upt: int = COST_UPT, *, swept: bool = False) -> HoldSettled:
    return HoldSettled(
        REQUEST, MicroPoints(amount_upt), USAGE, Basis.REPORTED, REF, Served(), swept=swept
    )


def released(reason: ReleaseReason = ReleaseReason.UPSTREAM_ERROR) -> HoldReleased:
    return HoldReleased(REQUEST, reason, Served())


def late(amount_upt: int, shortfall_upt: int = 0, sweep: UUID = SWEEP) -> UsageLate:
    return UsageLate(
        REQUEST, sweep, MicroPoints(amount_upt), MicroPoints(shortfall_upt), USAGE,
        Basis.REPORTED, REF, Served(),
    )  # fmt: skip


def test_a_call_that_is_held_and_settled_is_sound() -> None:
    assert Passing().held().ended(settled()).failed() == {}


def test_an_extended_call_with_a_shortfall_is_sound() -> None:
    short = ShortfallRecorded(REQUEST, MicroPoints(5_000))
    passing = Passing().held(20_000).pass_on(HoldExtended(REQUEST, MicroPoints(5_000)))
    assert passing.ended(settled(25_000)).pass_on(short).failed() == {}


@pytest.mark.parametrize("swept_upt", [0, 10_000])
def test_late_usage_after_a_sweep_is_sound(swept_upt: int) -> None:
    passing = Passing().held()
    if swept_upt:
        passing.ended(settled(swept_upt, swept=True), SWEEP)
        passing.pass_on(ShortfallRecorded(REQUEST, MicroPoints(COST_UPT - swept_upt)))
        passing.pass_on(late(0), command_id=late_command_id(REQUEST))
    else:
        passing.ended(released(ReleaseReason.SWEPT), SWEEP)
        passing.pass_on(late(COST_UPT - 7, 7), command_id=late_command_id(REQUEST))
    assert passing.failed() == {}


def test_a_price_that_is_read_later_is_looked_up_at_the_end() -> None:
    passing = Passing(priced=False).held().ended(settled())
    assert passing.pass_on(PriceSet(PER_TOKEN), f"price:{MODEL}").failed() == {}


def test_a_price_that_never_was_is_named() -> None:
    assert Passing(priced=False).held().ended(settled()).failed() == {PROVENANCE: (1, 3)}


@pytest.mark.parametrize("amount_upt", [COST_UPT - 1, COST_UPT + 1])
def test_another_amount_than_the_price_is_named(amount_upt: int) -> None:
    assert Passing().held(COST_UPT + 1).ended(settled(amount_upt)).failed() == {PROVENANCE: (1, 3)}


def test_a_shortfall_of_another_size_or_of_nothing_is_named() -> None:
    passing = Passing().held(20_000).ended(settled(20_000))
    assert passing.pass_on(ShortfallRecorded(REQUEST, MicroPoints(9_999))).failed() == {
        PROVENANCE: (1, 3)
    }
    short = ShortfallRecorded(REQUEST, MicroPoints(1))
    assert Passing().held().pass_on(short).failed() == {PROVENANCE: (1, 3)}


def test_a_charge_above_the_hold_is_named() -> None:
    assert Passing().held(COST_UPT - 1).ended(settled()).failed()[SETTLE_BOUNDS] == (1, 3)


def test_two_outcomes_are_named() -> None:
    assert Passing().held().ended(settled()).ended(released()).failed() == {ONE_OUTCOME: (1, 4)}


def test_an_outcome_on_another_account_is_named() -> None:
    passing = Passing().held()
    passing.pass_on(released(), "account:2", outcome_command_id(REQUEST))
    assert passing.failed() == {ONE_OUTCOME: (1, 1)}


def test_an_outcome_under_another_command_is_named() -> None:
    assert Passing().held().pass_on(settled()).failed() == {ONE_OUTCOME: (1, 3)}


def test_a_request_that_is_held_twice_or_extended_unheld_is_named() -> None:
    assert Passing().held().held().failed() == {ONE_OUTCOME: (1, 3)}
    extended = HoldExtended(REQUEST, MicroPoints(1))
    assert Passing().pass_on(extended).failed() == {ONE_OUTCOME: (1, 2)}


def test_late_usage_that_follows_no_sweep_is_named() -> None:
    passing = Passing().held().ended(settled())
    passing.pass_on(late(0), command_id=late_command_id(REQUEST))
    assert passing.failed()[ONE_OUTCOME] == (1, 4)


def test_a_balance_below_zero_is_named_at_the_event_that_made_it() -> None:
    taken = PointsCorrected(MicroPoints(-POINT), UUID(int=1), "cli")
    passing = Passing().held().pass_on(taken).ended(released())
    assert passing.failed() == {NO_OVERDRAFT: (1, 3)}


def test_a_state_that_is_not_the_sum_of_its_events_is_named() -> None:
    passing = Passing().held(10_000)
    sound = with_upt(POINT, held_event(REQUEST, 10_000))
    passing.books.compare("account:1", sound, 2)
    assert passing.failed() == {}
    passing.books.compare("account:1", Account(issued_upt=POINT), 2)
    assert passing.failed() == {CONSERVATION: (1, 2)}
