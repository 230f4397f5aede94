"""Subscriptions, any history: bought, renewed, changed, used up, given back and over.

No purchase gains or loses value beyond one micro-point, and no item gives more calls than it has.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from backend.journal.commands import Decision, Refuse
from backend.ledger.account import Account
from backend.ledger.admission import decide_hold
from backend.ledger.decide import decide_grant, decide_open, decide_release, decide_settle
from backend.ledger.decide_plans import decide_expire, decide_subscribe
from backend.ledger.refusals import MissingPoints, NothingExpired
from schemas.ids import PersonId, RequestId, outcome_command_id
from schemas.ledger import (
    GrantKind,
    HoldSettled,
    PlanBought,
    PlanChanged,
    PlanExpired,
    PlanRenewed,
    PointsHeld,
    ReleaseReason,
    RequestRefused,
    Served,
)
from schemas.money import MicroPoints
from schemas.plans import LEVEL_NAMES, Segment
from schemas.prices import PriceRef
from schemas.usage import Usage
from tests.given import hold_asked
from tests.model.ground import GROUPS, PLANS, PRICES, Streams, settle_of
from tests.model.histories import histories_of
from tests.model.simple import Simple, Under, month_of, months_after, price_of

STREAM = "account:1"
HOUR_US = 3_600_000_000
MODELS = ("token", "token", "token", "call", "odd", "free")


class PlanMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams()
        self.model = Simple()
        self.requests: list[tuple[RequestId, str, int]] = []
        self.level = self.anchor_us = self.term_us = self.term_months = 0
        self.segments: list[Segment] = []
        self.owed = Fraction(0)
        """Credited too little so far in this subscription, in micro-points."""

    @property
    def state(self) -> Account:
        return self.streams.state(STREAM)

    @property
    def active(self) -> bool:
        return bool(self.segments) and self.streams.at_us < self.segments[-1].until_us

    def decided(self, decide: Any, command_id: UUID | None = None) -> Any:
        return self.streams.submit(
            (STREAM,), lambda given, at_us: decide(given[0].state, given[0].version), command_id
        )

    @initialize(
        first=st.sampled_from([0, 15_000, 90_000, 400_000]),
        day=st.sampled_from([0, 15, 16, 17]),
        level=st.sampled_from([0, 1, 2]),
    )
    def open(self, first: int, day: int, level: int) -> None:
        """Mid-month, or near its end; perhaps with a subscription."""
        self.streams.at_us += day * 24 * HOUR_US
        self.decided(lambda s, v: decide_open(s, v, PersonId(1)))
        if first:
            upt = MicroPoints(first)
            self.decided(lambda s, v: decide_grant(s, v, upt, GrantKind.OPERATOR, "cli"))
            self.model.granted += first
        if level:
            self.subscribe(level, 3)

    @rule(level=st.sampled_from(sorted(PLANS)), months=st.sampled_from([1, 3, 6]))
    def subscribe(self, level: int, months: int) -> None:
        at_us, offered = self.streams.at_us, PLANS[level]
        plan = offered.plan
        less = dict(plan.discounts).get(months, 0)
        price = -(-plan.month_price_upt * months * (1_000_000 - less) // 1_000_000)
        changes = self.active and level != self.level
        worth = self.owed + sum(_left(one, at_us) for one in self.segments) if changes else 0
        free = self.model.free
        answer = self.decided(
            lambda s, v: decide_subscribe(s, v, offered, months, at_us, deliberate=True)
        )
        if isinstance(answer, Refuse):
            assert isinstance(answer.reason, MissingPoints)
            assert price - worth > free - 1
            assert price - worth <= free + answer.reason.missing_upt
            return
        event = answer[-1]
        credit = event.credit_upt if isinstance(event, PlanChanged) else 0
        assert 0 <= worth - credit <= 1
        assert event.segment.paid_upt == price
        assert price - credit <= free
        self.model.paid += price - credit
        if changes:
            self.owed = Fraction(worth - credit)
        self.takes(level, months, event)

    def takes(self, level: int, months: int, event: Any) -> None:
        """What is had from now on, and until when."""
        at_us, was_active = self.streams.at_us, self.active
        renews = was_active and level == self.level
        if renews:
            assert isinstance(event, PlanRenewed)
            begins_us, self.term_months = self.segments[-1].until_us, self.term_months + months
            self.segments = [one for one in self.segments if one.until_us > at_us]
        else:
            assert isinstance(event, PlanChanged if was_active else PlanBought)
            begins_us, self.term_us, self.term_months = at_us, at_us, months
            self.segments = []
        if not was_active:
            self.anchor_us, self.owed = at_us, Fraction(0)
        self.level = level
        until_us = months_after(self.term_us, self.term_months)
        assert event.segment == Segment(begins_us, until_us, event.segment.paid_upt)
        self.segments.append(event.segment)

    @rule(
        model=st.sampled_from(["token", "token", "call", "call", "odd", "free"]),
        by_relay=st.booleans(),
    )
    def hold(self, model: str, by_relay: bool) -> None:
        request, at_us = RequestId(str(self.streams.new_id())), self.streams.at_us
        price = PRICES[model]
        asked = hold_asked(
            request, price, model=model, price_ref=PriceRef(model, 1), output_limit=500,
            purpose="relay.chat" if by_relay else "chat", plans=PLANS, groups=GROUPS,
        )  # fmt: skip
        answer = self.decided(lambda s, v: decide_hold(s, v, asked, at_us), UUID(request))
        assert isinstance(answer, tuple)
        group = GROUPS.get(LEVEL_NAMES[self.level]) if self.active else None
        times = 1_000_000 if group is None else group.group.multiplier_ppm
        self.requests.append((request, model, times))
        item = self.used_item(request, model, by_relay)
        if item is not None:
            assert isinstance(answer[0], PointsHeld)
            assert answer[0].plan is not None
            assert (answer[0].plan.item, answer[0].amount_upt) == (item, 0)
            return
        least = price_of(price, Usage(input=1_000, output=1_000), times)
        wanted = price_of(price, Usage(input=100, output=500), times)
        held = self.model.hold(request, Under(1, 0), least, wanted)
        if held is None:
            assert isinstance(answer[0], RequestRefused)
            return
        assert isinstance(answer[0], PointsHeld)
        assert (answer[0].plan, answer[0].amount_upt) == (None, held)

    def used_item(self, request: str, model: str, by_relay: bool) -> str | None:
        if not self.active or model == "free":
            return None
        plan = PLANS[self.level].plan
        if by_relay and not plan.relay:
            return None
        month = months_after(self.anchor_us, month_of(self.anchor_us, self.streams.at_us))
        for item in plan.items:
            calls = item.monthly_calls
            if model in item.models and self.model.use(request, 1, item.id, month, calls):
                return item.id
        return None

    @precondition(lambda self: self.requests)
    @rule(
        which=st.sampled_from([0, 0, 1, 2, 3]),
        output=st.sampled_from([0, 500, 6_000]),
        reason=st.sampled_from([None, None, *ReleaseReason]),
    )
    def end(self, which: int, output: int, reason: ReleaseReason | None) -> None:
        """A failed call gives its unit back: once, and to its own month only."""
        under = [one for one in self.requests if one[0] in self.model.open]
        others = [one for one in self.requests if one[0] not in self.model.open]
        found = [*under, *reversed(others)]
        name, model, times = found[which % len(found)]
        usage = Usage(input=10, output=output)
        asked = settle_of(name, model, usage)

        def decide(state: Account, version: int) -> Decision:
            if reason is None:
                return decide_settle(state, asked)
            return decide_release(state, name, reason, Served())

        answer = self.decided(decide, outcome_command_id(name))
        one = self.model.open.get(name)
        if one is None:
            assert not isinstance(answer, tuple), "I3: a request has one outcome"
            return
        due = 0 if one.item or reason else price_of(PRICES[model], usage, times)
        charged = self.model.end(name, due, "settled" if reason is None else "released")
        assert sum(e.amount_upt for e in answer if isinstance(e, HoldSettled)) == charged

    @rule(hours=st.sampled_from([5, 31 * 24, 95 * 24]), notes=st.booleans())
    def time_passes(self, hours: int, notes: bool) -> None:
        self.streams.at_us += hours * HOUR_US
        if notes:
            self.expire()

    def expire(self) -> None:
        at_us = self.streams.at_us
        answer = self.decided(lambda s, _: decide_expire(s, at_us))
        if self.active or not self.segments:
            assert isinstance(answer, Refuse)
            assert isinstance(answer.reason, NothingExpired)
            return
        assert answer == (PlanExpired(self.level),)
        self.segments = []

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        state = self.state
        assert (state.issued_upt, state.charged_upt) == (self.model.granted, self.model.paid)
        under = {name: one.upt for name, one in self.model.open.items()}
        assert {name: hold.amount_upt for name, hold in state.holds.items()} == under
        assert state.available_upt == self.model.free >= 0
        assert 0 <= self.owed <= 1

    @invariant()
    def no_item_gives_more_calls_than_it_has(self) -> None:
        subscription = self.state.subscription
        assert (subscription is None) == (not self.segments)
        if subscription is None:
            return
        assert (subscription.level, subscription.segments) == (self.level, tuple(self.segments))
        if subscription.period_us == self.model.month:
            assert subscription.used == self.model.used
        most = {item.id: item.monthly_calls for p in PLANS.values() for item in p.plan.items}
        most["chat"] = max(item.monthly_calls for p in PLANS.values() for item in p.plan.items)
        for item, used in subscription.used.items():
            assert used >= 0
            assert most[item] == -1 or used <= most[item]

    def teardown(self) -> None:
        self.streams.assert_sound()


def _left(segment: Segment, at_us: int) -> Fraction:
    """What is still unused of what was paid."""
    left_us = max(0, segment.until_us - max(at_us, segment.from_us))
    return Fraction(segment.paid_upt * left_us, segment.until_us - segment.from_us)


TestPlanMachine = histories_of(PlanMachine, histories=4_000, steps=12)
