"""One account, any history: the pure ledger beside a small model that only adds and subtracts."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from backend.journal.commands import Command, Decision, LeaseSweep, Refuse
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.admission import decide_hold
from backend.ledger.decide import (
    decide_extend,
    decide_grant,
    decide_late,
    decide_open,
    decide_release,
    decide_settle,
)
from schemas.ids import PersonId, RequestId, late_command_id, outcome_command_id
from schemas.ledger import (
    GrantKind,
    HoldReleased,
    HoldSettled,
    PointsHeld,
    ReleaseReason,
    RequestRefused,
    Served,
    UsageLate,
)
from schemas.money import MicroPoints
from schemas.prices import Free, PerCall, PerToken, Price
from schemas.usage import Usage
from tests.given import AT_US, batch_on, empty_heads, hold_asked, settle_asked

STREAM = "account:1"
PRICES: st.SearchStrategy[Price] = st.sampled_from(
    [Free(), PerCall(3_000_000), PerToken(1_000, 2_000), PerToken(7, 11, 3)]
)
OUTPUTS = st.integers(0, 12_000)


class Simple:
    """What an account is, said without the ledger's own words."""

    def __init__(self) -> None:
        self.granted = 0
        self.paid = 0
        self.open: dict[str, int] = {}
        self.ended: dict[str, str] = {}

    @property
    def free(self) -> int:
        return self.granted - self.paid - sum(self.open.values())

    def hold(self, request: str, least: int, wanted: int) -> int | None:
        if self.free < least:
            return None
        self.open[request] = min(wanted, self.free)
        return self.open[request]

    def extend(self, request: str, wanted: int) -> None:
        self.open[request] += max(0, min(wanted, self.free))

    def end(self, request: str, due: int, how: str) -> int:
        charged = min(due, self.open[request] + self.free)
        del self.open[request]
        self.paid += charged
        self.ended[request] = how
        return charged


def price_of(price: Price, usage: Usage) -> int:
    """Whole micro-points, from the price list's own words."""
    match price:
        case Free():
            nano = 0
        case PerCall(call_npt):
            nano = call_npt
        case PerToken(input_npt, output_npt, _):
            nano = usage.input * input_npt + usage.output * output_npt
    return (nano + 999) // 1_000


class AccountMachine(RuleBasedStateMachine):
    """Commands go through a batch each, as they would land; ids that landed are not tried again."""

    requests: Bundle[tuple[RequestId, Price]] = Bundle("requests")
    swept: Bundle[tuple[RequestId, Price, UUID, int]] = Bundle("swept")

    def __init__(self) -> None:
        super().__init__()
        self.head = empty_heads(STREAM)[STREAM]
        self.model = Simple()
        self.events: list[Any] = []
        self.times_us: list[int] = []
        self.done: dict[UUID, tuple[Any, ...]] = {}
        self.at_us = AT_US
        self.commands = 0

    def new_id(self) -> UUID:
        self.commands += 4
        return UUID(int=self.commands << 8)

    def submit(self, command_id: UUID, decision_of: Any) -> tuple[Any, ...] | Refuse | None:
        """The events that landed, the refusal, or None for a command id the log already has."""
        if command_id in self.done:
            return None
        batch = batch_on({STREAM: self.head}, self.at_us)

        def decide(standings: Any, at_us: int) -> Decision:
            return decision_of(standings[0].state, standings[0].version)

        decision = batch.add(Command(command_id, (STREAM,), decide))
        if isinstance(decision, Refuse):
            return decision
        self.head = batch.head_of(STREAM)
        events = tuple(event for _, event in decision.events)
        self.events.extend(events)
        self.times_us.extend(self.at_us for _ in events)
        self.done[command_id] = events
        return events

    @property
    def state(self) -> Account:
        return self.head.state

    @initialize(first=st.integers(0, 30_000))
    def open(self, first: int) -> None:
        self.submit(UUID(int=1), lambda s, v: decide_open(s, v, PersonId(1)))
        if first:
            self.grant(first)

    @rule(amount=st.integers(1, 50_000))
    def grant(self, amount: int) -> None:
        self.submit(
            self.new_id(),
            lambda s, v: decide_grant(s, v, MicroPoints(amount), GrantKind.OPERATOR, "cli"),
        )
        self.model.granted += amount

    @rule(
        target=requests,
        price=PRICES,
        input_bound=st.integers(0, 3_000),
        limit=st.none() | st.integers(1, 9_000),
        choices=st.integers(1, 3),
    )
    def hold(self, price: Price, input_bound: int, limit: int | None, choices: int) -> Any:
        request = RequestId(str(self.new_id()))
        asked = hold_asked(
            request, price, input_bound=input_bound, output_limit=limit, choices=choices
        )
        answer = self.submit(UUID(request), lambda s, v: decide_hold(s, v, asked, self.at_us))
        output = min(limit or 4_096, 4_096) * choices
        least = 0 if isinstance(price, Free) else price_of(price, Usage(input=1_000, output=1_000))
        wanted = price_of(price, Usage(input=input_bound, output=output))
        held = self.model.hold(request, least, wanted)
        if held is None:
            if isinstance(answer, tuple):
                assert isinstance(answer[0], RequestRefused)
        else:
            assert isinstance(answer, tuple)
            assert isinstance(answer[0], PointsHeld)
            assert answer[0].amount_upt == held
        return request, price

    @rule(request=requests, wanted=st.integers(-5, 20_000))
    def extend(self, request: tuple[RequestId, Price], wanted: int) -> None:
        name, _ = request
        self.submit(self.new_id(), lambda s, _: decide_extend(s, name, wanted))
        if name in self.model.open:
            self.model.extend(name, wanted)

    @rule(request=requests, output=OUTPUTS)
    def settle(self, request: tuple[RequestId, Price], output: int) -> None:
        """Below and above the hold; a second time, or of nothing held, it changes nothing."""
        name, price = request
        usage = Usage(input=10, output=output)
        asked = settle_asked(name, price, usage)
        answer = self.submit(outcome_command_id(name), lambda s, _: decide_settle(s, asked))
        self._ended(name, answer, price_of(price, usage), "settled")

    @rule(request=requests)
    def release(self, request: tuple[RequestId, Price]) -> None:
        name, _ = request
        answer = self.submit(
            outcome_command_id(name),
            lambda s, _: decide_release(s, name, ReleaseReason.CLIENT_LEFT, Served()),
        )
        self._ended(name, answer, 0, "released")

    @rule(target=swept, request=requests, begun=st.booleans(), output=OUTPUTS)
    def sweep(self, request: tuple[RequestId, Price], begun: bool, output: int) -> Any:
        name, price = request
        guard = LeaseSweep(name, 1)
        usage = Usage(input=10, output=output)
        asked = settle_asked(name, price, usage)

        def decide(state: Account, version: int) -> Decision:
            if begun:
                return decide_settle(state, asked, guard)
            return decide_release(state, name, ReleaseReason.SWEPT, Served(), guard)

        answer = self.submit(outcome_command_id(name), decide)
        self._ended(name, answer, price_of(price, usage) if begun else 0, "swept")
        events = answer if isinstance(answer, tuple) else ()
        charged = sum(e.amount_upt for e in events if isinstance(e, HoldSettled))
        return name, price, UUID(int=len(self.events)), charged

    @rule(swept=consumes(swept), output=OUTPUTS, times=st.integers(1, 3))
    def late(self, swept: Any, output: int, times: int) -> None:
        name, price, sweep_event_id, by_sweep = swept
        if self.model.ended.get(name) != "swept":
            return
        usage = Usage(input=10, output=output)
        asked = settle_asked(name, price, usage)
        for _ in range(times):
            before = self.model.free
            answer = self.submit(
                late_command_id(name),
                lambda s, v: decide_late(s, v, asked, sweep_event_id, by_sweep),
            )
            if answer is None:
                continue
            assert isinstance(answer, tuple)
            (event,) = answer
            assert isinstance(event, UsageLate)
            due = max(0, price_of(price, usage) - by_sweep)
            assert event.amount_upt == min(due, before)
            assert event.amount_upt + event.shortfall_upt == due
            self.model.paid += event.amount_upt

    @rule(hours=st.integers(0, 2))
    def time_passes(self, hours: int) -> None:
        self.at_us += hours * 3_600_000_000

    def _ended(self, name: str, answer: Any, due: int, how: str) -> None:
        if name not in self.model.open:
            assert not isinstance(answer, tuple), "I3: a request has one outcome"
            return
        assert isinstance(answer, tuple)
        held = self.model.open[name] + self.model.free
        charged = self.model.end(name, due, how)
        assert sum(e.amount_upt for e in answer if isinstance(e, HoldSettled)) == charged <= held
        short = sum(e.amount_upt for e in answer if type(e).__name__ == "ShortfallRecorded")
        assert charged + short == due

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        state = self.state
        assert state.issued_upt == self.model.granted
        assert state.charged_upt == self.model.paid
        assert {name: hold.amount_upt for name, hold in state.holds.items()} == self.model.open

    @invariant()
    def nothing_appears_and_nothing_vanishes(self) -> None:
        """I1: the issuer's leg is the sum of all the others."""
        state = self.state
        assert state.held_upt == sum(hold.amount_upt for hold in state.holds.values())
        assert state.issued_upt == state.charged_upt + state.held_upt + state.available_upt

    @invariant()
    def no_balance_is_below_zero(self) -> None:
        """I2, after every step; `apply` checks it after every event of a step."""
        assert self.state.available_upt >= 0
        assert self.state.held_upt >= 0
        assert all(hold.amount_upt >= 0 for hold in self.state.holds.values())

    @invariant()
    def every_request_has_at_most_one_outcome(self) -> None:
        ends = [e.request_id for e in self.events if isinstance(e, HoldSettled | HoldReleased)]
        assert len(ends) == len(set(ends))
        assert not set(ends) & self.state.holds.keys()

    @invariant()
    def a_state_is_read_back_as_the_same_bytes(self) -> None:
        stored = ACCOUNT.encode(self.state)
        assert ACCOUNT.decode(stored) == self.state
        assert ACCOUNT.encode(ACCOUNT.decode(stored)) == stored

    def teardown(self) -> None:
        """Replayed in one go, the events give the state that was reached step by step."""
        assert len(self.events) == self.head.version
        replayed = reread = ACCOUNT.empty
        history = zip(self.events, self.times_us, strict=True)
        for version, (event, at_us) in enumerate(history, 1):
            replayed = ACCOUNT.apply(replayed, event, version, at_us)
            stored = ACCOUNT.encode(ACCOUNT.apply(reread, event, version, at_us))
            reread = ACCOUNT.decode(stored)
        reached = ACCOUNT.encode(self.state)
        assert ACCOUNT.encode(replayed) == ACCOUNT.encode(reread) == reached


TestAccountMachine = AccountMachine.TestCase
TestAccountMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
