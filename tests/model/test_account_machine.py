"""One account, any history: the pure ledger beside a small model that only adds and subtracts."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from backend.journal.commands import Decision, LeaseSweep, Refuse
from backend.ledger.account import Account
from backend.ledger.admission import decide_hold
from backend.ledger.decide import (
    decide_extend,
    decide_grant,
    decide_late,
    decide_open,
    decide_release,
    decide_settle,
)
from backend.ledger.decide_correction import CorrectionAsked, decide_correction, moved_upt
from backend.ledger.refusals import NotForGroup, TooManyAtOnce
from schemas.identity import Reset
from schemas.ids import KeyId, PersonId, RequestId, late_command_id, outcome_command_id
from schemas.ledger import (
    GrantKind,
    HoldReleased,
    HoldSettled,
    PointsCorrected,
    PointsHeld,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import MicroPoints
from schemas.prices import PriceRef
from schemas.registry import decode
from schemas.relay import KeyTerms
from schemas.usage import Usage
from tests.given import hold_asked
from tests.model.ground import GROUPS, PRICES, Streams, settle_of
from tests.model.histories import histories_of
from tests.model.simple import Simple, Under, price_of

STREAM = "account:1"
DAY_US = 86_400_000_000
LIMIT = 5_000
"""What key 2 may spend in a day."""
KEYS = {
    1: KeyTerms(KeyId(1)),
    2: KeyTerms(KeyId(2), quota_upt=LIMIT, reset=Reset.DAILY),
    3: KeyTerms(KeyId(3), group="vip", concurrency=2),
}
OUTPUTS = st.sampled_from([0, 7, 499, 1_000, 4_098, 11_111])
WHICH = st.sampled_from([0, 0, 1, 2, 3])


class AccountMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams()
        self.model = Simple()
        self.requests: list[tuple[RequestId, str]] = []
        self.held: dict[str, PointsHeld] = {}
        self.swept: dict[str, tuple[UUID, int]] = {}

    @property
    def state(self) -> Account:
        return self.streams.state(STREAM)

    def decided(self, decide: Any, command_id: UUID | None = None) -> Any:
        return self.streams.submit(
            (STREAM,), lambda given, at_us: decide(given[0].state, given[0].version), command_id
        )

    def request(self, which: int) -> tuple[RequestId, str]:
        """One under way, or further on one that has ended or never was let in."""
        under = [one for one in self.requests if one[0] in self.model.open]
        others = [one for one in self.requests if one[0] not in self.model.open]
        found = [*under, *reversed(others)]
        return found[which % len(found)]

    @initialize(first=st.sampled_from([0, 4_000, 30_000, 200_000]))
    def open(self, first: int) -> None:
        self.decided(lambda s, v: decide_open(s, v, PersonId(1)))
        if first:
            self.grant(first)

    def grant(self, amount: int) -> None:
        upt = MicroPoints(amount)
        self.decided(lambda s, v: decide_grant(s, v, upt, GrantKind.OPERATOR, "cli"))
        self.model.granted += amount

    @rule(
        key=st.sampled_from([1, 2, 2, 3]),
        model=st.sampled_from(sorted(PRICES)),
        input_bound=st.sampled_from([0, 100, 2_999]),
        limit=st.sampled_from([None, 1, 500, 9_000]),
        choices=st.sampled_from([1, 3]),
    )
    def hold(self, key: int, model: str, input_bound: int, limit: int | None, choices: int) -> None:
        request, price = RequestId(str(self.streams.new_id())), PRICES[model]
        asked = hold_asked(
            request, price, input_bound=input_bound, output_limit=limit, choices=choices,
            key=KEYS[key], model=model, price_ref=PriceRef(model, 1), concurrency=5, groups=GROUPS,
        )  # fmt: skip
        at_us = self.streams.at_us
        answer = self.decided(lambda s, v: decide_hold(s, v, asked, at_us), UUID(request))
        self.requests.append((request, model))
        group = GROUPS.get(KEYS[key].group)
        times = 1_000_000 if group is None else group.group.multiplier_ppm
        if group is not None and model not in group.group.models:
            assert isinstance(answer, Refuse)
            assert isinstance(answer.reason, NotForGroup)
            return
        under = [one.key for one in self.model.open.values()]
        if len(under) >= 5 or (key == 3 and under.count(3) >= 2):
            assert isinstance(answer, Refuse)
            assert isinstance(answer.reason, TooManyAtOnce)
            return
        one = Under(key, 0, LIMIT if key == 2 else None, at_us // DAY_US * DAY_US)
        least = price_of(price, Usage(input=1_000, output=1_000), times)
        output = min(limit or 4_096, 4_096) * choices
        wanted = price_of(price, Usage(input=input_bound, output=output), times)
        held = self.model.hold(request, one, least, wanted)
        assert isinstance(answer, tuple)
        if held is None:
            assert isinstance(answer[0], RequestRefused)
            return
        assert isinstance(answer[0], PointsHeld)
        assert answer[0].amount_upt == held
        self.held[request] = answer[0]

    @precondition(lambda self: self.requests)
    @rule(which=WHICH, wanted=st.integers(-5, 20_000))
    def extend(self, which: int, wanted: int) -> None:
        name, _ = self.request(which)
        answer = self.decided(lambda s, _: decide_extend(s, name, wanted))
        more = self.model.extend(name, wanted) if name in self.model.open else 0
        assert more == (answer[0].amount_upt if isinstance(answer, tuple) else 0)

    @precondition(lambda self: self.requests)
    @rule(which=WHICH, how=st.sampled_from(["settle", "release", "sweep"]), output=OUTPUTS)
    def end(self, which: int, how: str, output: int) -> None:
        """Below and above the hold; a second time, or of nothing held, it changes nothing."""
        self.end_of(self.request(which), how, output)

    def end_of(self, request: tuple[RequestId, str], how: str, output: int) -> None:
        name, model = request
        guard = LeaseSweep(name, 1) if how == "sweep" else None
        settles = how == "settle" or (guard is not None and output % 2 == 0)
        asked = self.asked(name, model, output)
        reason = ReleaseReason.CLIENT_LEFT if guard is None else ReleaseReason.SWEPT

        def decide(state: Account, version: int) -> Decision:
            if settles:
                return decide_settle(state, asked, guard)
            return decide_release(state, name, reason, Served(), guard)

        answer = self.decided(decide, outcome_command_id(name))
        due = self.due(name, model, output) if settles else 0
        if guard is not None and isinstance(answer, tuple):
            ends = [r for r in self.streams.rows if r.type in ("HoldSettled", "HoldReleased")]
            self.swept[name] = ends[-1].event_id, due
        self.has_ended(name, answer, due, "settled" if settles else "released")

    @precondition(lambda self: self.swept)
    @rule(which=WHICH, output=OUTPUTS)
    def late(self, which: int, output: int) -> None:
        name = RequestId(sorted(self.swept)[which % len(self.swept)])
        model = dict(self.requests)[name]
        event_id, accounted = self.swept[name]
        asked = self.asked(name, model, output)
        answer = self.decided(
            lambda s, v: decide_late(s, v, asked, event_id, accounted), late_command_id(name)
        )
        if answer is None:
            return
        (event,) = answer
        assert isinstance(event, UsageLate)
        due = max(0, self.due(name, model, output) - accounted)
        quota = self.held[name].quota
        one = Under(self.held[name].key, 0)
        if quota is not None:
            one.limit, one.day = LIMIT, quota.period_us
        assert event.amount_upt == self.model.late(one, due)
        assert event.amount_upt + event.shortfall_upt == due

    @rule(which=st.integers(0, 9), amount=st.integers(-30_000, 5_000), grants=st.booleans())
    def correct(self, which: int, amount: int, grants: bool) -> None:
        """Takes or gives because of an earlier entry; or simply gives."""
        if grants:
            self.grant(abs(amount) + 1)
            return
        rows = self.streams.rows
        row = rows[-1 - which % len(rows)]
        entry, before = decode(row), self.model.free
        asked = CorrectionAsked(MicroPoints(amount), row.event_id, "cli")
        answer = self.decided(lambda s, v: decide_correction(s, v, asked, entry))
        fits = amount != 0 and before + amount >= 0 and moved_upt(entry) != 0
        assert isinstance(answer, tuple) is fits
        if isinstance(answer, tuple):
            assert isinstance(answer[0], PointsCorrected)
            self.model.granted += amount

    @rule(output=OUTPUTS)
    def hold_over_midnight(self, output: int) -> None:
        """A key with a limit spends today and tomorrow; what was asked today ends last."""
        self.hold(2, "odd", 100, 500, 1)
        asked = self.requests[-1]
        for _ in range(2):
            self.hold(2, "call", 100, 500, 1)
            self.end_of(self.requests[-1], "settle", 1)
            self.time_passes(24)
        self.end_of(asked, "settle", output)

    @rule(hours=st.sampled_from([1, 15, 30]))
    def time_passes(self, hours: int) -> None:
        self.streams.at_us += hours * 3_600_000_000

    def asked(self, name: RequestId, model: str, output: int) -> Any:
        """With the terms of the hold, which the caller remembers."""
        asked, held = settle_of(name, model, Usage(input=10, output=output)), self.held.get(name)
        if held is None:
            return asked
        return msgspec.structs.replace(asked, terms=held.terms, key=held.key, quota=held.quota)

    def due(self, name: str, model: str, output: int) -> int:
        held = self.held.get(name)
        times = 1_000_000 if held is None else held.terms.multiplier_ppm
        return price_of(PRICES[model], Usage(input=10, output=output), times)

    def has_ended(self, name: str, answer: Any, due: int, how: str) -> None:
        if name not in self.model.open:
            assert not isinstance(answer, tuple), "I3: a request has one outcome"
            return
        assert isinstance(answer, tuple)
        one = self.model.open[name]
        charged = self.model.end(name, due, how)
        settled = sum(e.amount_upt for e in answer if isinstance(e, HoldSettled))
        short = sum(e.amount_upt for e in answer if isinstance(e, ShortfallRecorded))
        assert (settled, settled + short) == (charged, due)
        assert settled <= one.upt, "I4"

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        state = self.state
        assert (state.issued_upt, state.charged_upt) == (self.model.granted, self.model.paid)
        under = {name: one.upt for name, one in self.model.open.items()}
        assert {name: hold.amount_upt for name, hold in state.holds.items()} == under

    @invariant()
    def nothing_appears_vanishes_or_falls_below_zero(self) -> None:
        """I1 and I2, after every step; `apply` checks I2 after every event of a step."""
        state = self.state
        assert state.held_upt == sum(hold.amount_upt for hold in state.holds.values())
        assert state.issued_upt == state.charged_upt + state.held_upt + state.available_upt
        assert min(state.available_upt, state.held_upt, state.charged_upt) >= 0
        assert all(hold.amount_upt >= 0 for hold in state.holds.values())

    @invariant()
    def no_key_spends_beyond_its_limit_in_any_day(self) -> None:
        days = {day for _, day in self.model.spent}
        for day in days | {one.day for one in self.model.open.values() if one.limit}:
            under = sum(o.upt for o in self.model.open.values() if o.limit and o.day == day)
            assert self.model.spent.get((2, day), 0) + under <= LIMIT

    def teardown(self) -> None:
        events = [event for _, event in self.streams.events]
        ends = [e.request_id for e in events if isinstance(e, HoldSettled | HoldReleased)]
        assert len(ends) == len(set(ends)), "I3"
        assert not set(ends) & self.state.holds.keys()
        self.streams.assert_sound()


TestAccountMachine = histories_of(AccountMachine, histories=4_000, steps=12)
