"""The audit's books of codes, gifts, groups and subscriptions: each invariant broken once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from backend.ledger.subscription import add_months
from projections.audit.books import Books
from projections.audit.report import PLANS, PROVENANCE, SINGLE_USE, Findings
from projections.verifying import Line
from schemas.catalog import GroupDefined, PlanDefined, PriceSet
from schemas.event import Recorded
from schemas.ids import KeyId, PersonId, RequestId, outcome_command_id
from schemas.ledger import (
    CodeIssued,
    CodeKind,
    CodeRedeemed,
    CodeVoided,
    GiftTaken,
    GrantKind,
    HoldReleased,
    HoldSettled,
    PlanBought,
    PlanChanged,
    PlanExpired,
    PlanRenewed,
    PointsGranted,
    PointsHeld,
    ReleaseReason,
    Served,
)
from schemas.money import MicroPoints
from schemas.plans import Group, Plan, PlanItem, PlanRef, PlanUse, Segment
from schemas.prices import PerCall, PriceRef, Terms
from schemas.usage import Basis, Usage
from tests.given import MODEL, PER_TOKEN, POINT, REF, granted_event, new_request

CODE = "code:00"
USE = UUID(int=5)
AT = 1_000_000
MONTH = add_months(AT, 1, "UTC") - AT
HALF = AT + MONTH // 2
ITEM = PlanItem("chat", "Chat", (MODEL,), 1)
PLAN = Plan("Basic", MicroPoints(100), (ITEM,), relay=True, discounts=((12, 500_000),))
REF_1, REF_2 = PlanRef(1, 1), PlanRef(2, 1)
REQUEST = new_request()
USAGE = Usage(input=100, output=100)


class Passing:
    """Events as they pass the books, at times that are given."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.books = Books(self.findings)
        self._versions: dict[str, int] = {}
        self.then(PriceSet(PER_TOKEN), f"price:{MODEL}")
        self.then(PlanDefined(PLAN), "plan:1").then(PlanDefined(PLAN), "plan:2")
        self.then(granted_event(POINT))

    def then(
        self, event: Any, stream: str = "account:1", at_us: int = AT, command: UUID | None = None
    ) -> Passing:
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        row = Recorded(
            1, version, version, UUID(int=version), command or USE, "", 0, stream, version,
            type(event).__name__, 1, at_us, b"", b"", b"",
        )  # fmt: skip
        self.books.observe(row, event, Line(stream, b"", None, ""))
        return self

    def ended(self, event: Any) -> Passing:
        return self.then(event, command=outcome_command_id(RequestId(event.request_id)))

    def failed(self) -> dict[str, int]:
        self.books.finish()
        return {check.id: check.violations for check in self.findings.checks() if not check.ok}


def issued(kind: CodeKind = CodeKind.REDEEM, gift_type: str = "") -> CodeIssued:
    return CodeIssued(kind, MicroPoints(7), "b", "h", "cli", gift_type)


def credit(amount_upt: int = 7, source: str = CODE) -> PointsGranted:
    return PointsGranted(MicroPoints(amount_upt), GrantKind.REDEMPTION, "person:1", source)


def gift(source: str = CODE) -> GiftTaken:
    return GiftTaken("new year", MicroPoints(7), source)


def segment(from_us: int = AT, months: int = 1, paid_upt: int = 100) -> Segment:
    return Segment(from_us, add_months(from_us, months, "UTC"), MicroPoints(paid_upt))


def bought(paid_upt: int = 100, months: int = 1) -> PlanBought:
    return PlanBought(REF_1, months, segment(AT, months, paid_upt), AT, "UTC")


def held(plan: PlanUse | None = None, terms: Terms | None = None) -> PointsHeld:
    return PointsHeld(
        REQUEST, MicroPoints(0 if plan else 60_000), "relay.chat", KeyId(1), MODEL, REF,
        streamed=False, input_bound=1, output_bound=1, terms=terms or Terms(AT), plan=plan,
    )  # fmt: skip


def settled(amount_upt: int, **more: Any) -> HoldSettled:
    return HoldSettled(
        REQUEST, MicroPoints(amount_upt), USAGE, Basis.REPORTED, REF, Served(),
        terms=more.pop("terms", Terms(AT)), **more,
    )  # fmt: skip


BY_PLAN = PlanUse(REF_1, "chat", AT)


def test_a_code_used_and_credited_together_is_sound_in_either_order() -> None:
    there = Passing().then(issued(), CODE).then(CodeRedeemed(PersonId(1)), CODE).then(credit())
    assert there.failed() == {}
    back = Passing().then(issued(), CODE).then(credit()).then(CodeRedeemed(PersonId(1)), CODE)
    assert back.failed() == {}


def test_a_code_used_twice_is_found() -> None:
    twice = Passing().then(issued(), CODE)
    for _ in range(2):
        twice.then(CodeRedeemed(PersonId(1)), CODE).then(credit())
    assert twice.failed()[SINGLE_USE] == 2  # the second use, and its credit


def test_a_void_code_that_is_used_is_found() -> None:
    void = Passing().then(issued(), CODE).then(CodeVoided("cli"), CODE)
    assert SINGLE_USE in void.then(CodeRedeemed(PersonId(1)), CODE).failed()


def test_a_use_without_credit_and_a_credit_without_use_are_found() -> None:
    used = Passing().then(issued(), CODE).then(CodeRedeemed(PersonId(1)), CODE)
    assert used.failed() == {SINGLE_USE: 1}
    assert Passing().then(issued(), CODE).then(credit()).failed() == {SINGLE_USE: 1}


def test_a_code_credited_to_somebody_else_or_by_another_command_is_found() -> None:
    used = Passing().then(issued(), CODE).then(CodeRedeemed(PersonId(2)), CODE)
    assert used.then(credit()).failed() == {SINGLE_USE: 1}
    used = Passing().then(issued(), CODE).then(CodeRedeemed(PersonId(1)), CODE)
    assert used.then(credit(), command=UUID(int=6)).failed() == {SINGLE_USE: 1}


def test_a_code_credited_with_another_amount_is_found() -> None:
    used = Passing().then(issued(), CODE).then(CodeRedeemed(PersonId(1)), CODE)
    assert used.then(credit(8)).failed() == {PROVENANCE: 1}


def test_a_second_gift_of_a_type_is_found() -> None:
    passing = Passing()
    for stream in (CODE, "code:01"):
        passing.then(issued(CodeKind.GIFT, "new year"), stream)
        passing.then(CodeRedeemed(PersonId(1)), stream).then(gift(stream))
    assert passing.failed() == {SINGLE_USE: 1}


def test_a_subscription_that_is_bought_renewed_changed_and_over_is_sound() -> None:
    passing = Passing().then(bought())
    year = Segment(AT + MONTH, add_months(AT, 13, "UTC"), MicroPoints(600))
    passing.then(PlanRenewed(REF_1, 12, year), at_us=AT + 10)
    change = PlanChanged(REF_2, 1, segment(HALF), "UTC", MicroPoints(650), 0)
    passing.then(change, at_us=HALF)
    passing.then(PlanExpired(2), at_us=add_months(HALF, 1, "UTC"))
    assert passing.failed() == {}


def test_paid_time_ends_when_its_months_do() -> None:
    too_long = PlanBought(REF_1, 1, segment(AT, 12, 100), AT, "UTC")
    assert Passing().then(too_long).failed() == {PLANS: 1}
    too_long = PlanRenewed(REF_1, 1, Segment(AT + MONTH, AT + 9 * MONTH, MicroPoints(100)))
    assert Passing().then(bought()).then(too_long, at_us=AT + 10).failed() == {PLANS: 1}


def test_a_change_keeps_the_periods_where_they_were() -> None:
    change = PlanChanged(REF_2, 1, segment(HALF), "Asia/Shanghai", MicroPoints(50), 0)
    assert PLANS in Passing().then(bought()).then(change, at_us=HALF).failed()
    moved = PlanUse(REF_1, "chat", AT + 5)
    assert Passing().then(bought()).then(held(moved, Terms(AT + 5)), at_us=AT + 5).failed() == {
        PLANS: 1
    }


def test_a_plan_pays_for_its_own_models_and_where_it_says_so() -> None:
    other = msgspec.structs.replace(held(BY_PLAN), model="other")
    assert Passing().then(bought()).then(other).failed() == {PLANS: 1}
    closed = PlanDefined(msgspec.structs.replace(PLAN, relay=False))
    passing = Passing().then(closed, "plan:1")
    use = PlanUse(PlanRef(1, 2), "chat", AT)
    passing.then(PlanBought(PlanRef(1, 2), 1, segment(), AT, "UTC"))
    assert passing.then(held(use)).failed() == {PLANS: 1}


def test_a_price_that_a_plan_never_had_is_found() -> None:
    assert Passing().then(bought(99)).failed() == {PLANS: 1}
    assert Passing().then(bought(1_200, months=12)).failed() == {PLANS: 1}


def test_too_much_and_too_little_credit_are_found() -> None:
    for credit_upt in (49, 51):
        passing = Passing().then(bought())
        change = PlanChanged(REF_2, 1, segment(HALF), "UTC", MicroPoints(credit_upt), 0)
        assert passing.then(change, at_us=HALF).failed() == {PLANS: 1}


def test_a_subscription_that_ends_early_is_found() -> None:
    passing = Passing().then(bought()).then(PlanExpired(1), at_us=AT + MONTH - 1)
    assert passing.failed() == {PLANS: 1}


def test_a_call_that_a_plan_pays_is_sound_and_a_charge_for_it_is_found() -> None:
    passing = Passing().then(bought()).then(held(BY_PLAN))
    assert passing.ended(settled(0, plan=BY_PLAN)).failed() == {}
    passing = Passing().then(bought()).then(held(BY_PLAN))
    assert PROVENANCE in passing.ended(settled(1, plan=BY_PLAN)).failed()


def test_more_calls_than_an_item_has_are_found_and_a_given_back_one_is_not() -> None:
    passing, other = Passing().then(bought()).then(held(BY_PLAN)), new_request()
    second = msgspec.structs.replace(held(BY_PLAN), request_id=other)
    assert passing.then(second).failed() == {PLANS: 1}
    passing = Passing().then(bought()).then(held(BY_PLAN))
    passing.ended(HoldReleased(REQUEST, ReleaseReason.UPSTREAM_ERROR, Served()))
    assert passing.then(second).failed() == {}


def test_a_plan_that_is_not_had_or_over_pays_for_nothing() -> None:
    assert Passing().then(held(BY_PLAN)).failed() == {PLANS: 1}
    over = AT + MONTH
    next_month = PlanUse(REF_1, "chat", over)
    passing = Passing().then(bought()).then(held(next_month, Terms(over)), at_us=over)
    assert passing.failed() == {PLANS: 1}


def test_a_multiplier_must_have_been_defined() -> None:
    half = Terms(AT, "vip", 1, 500_000)
    passing = Passing().then(GroupDefined(Group(500_000)), "group:vip")
    assert passing.then(held(terms=half)).ended(settled(15_000, terms=half)).failed() == {}
    passing = Passing().then(held(terms=half)).ended(settled(15_000, terms=half))
    assert passing.failed() == {PROVENANCE: 1}


def test_a_settle_on_other_terms_than_its_hold_is_found() -> None:
    half = Terms(AT, "vip", 1, 500_000)
    passing = Passing().then(GroupDefined(Group(500_000)), "group:vip").then(held())
    assert passing.ended(settled(15_000, terms=half)).failed() == {PROVENANCE: 1}


def test_a_settle_at_another_price_than_its_hold_is_found() -> None:
    cheap = PriceRef("cheap", 1)
    passing = Passing().then(PriceSet(PerCall(1)), "price:cheap").then(held())
    assert passing.ended(msgspec.structs.replace(settled(1), price=cheap)).failed() == {
        PROVENANCE: 1
    }


def test_points_of_a_code_that_is_not_named_are_found() -> None:
    assert Passing().then(gift("")).failed() == {SINGLE_USE: 1}
    assert Passing().then(credit(source="")).failed() == {SINGLE_USE: 1}
