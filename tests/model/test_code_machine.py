"""Codes, gifts and rewards of several people, any history: each is credited once, or not at all."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backend.journal.commands import Accept, Decision, Refuse
from backend.ledger.decide import decide_open
from backend.ledger.decide_codes import decide_issue_code, decide_redeem, decide_void_code
from backend.ledger.decide_invitation import decide_invitation_reward
from backend.ledger.refusals import (
    AlreadyOpen,
    GiftTakenBefore,
    NoSuchAccount,
    OtherKindOfCode,
    SpentCode,
    UnknownCode,
)
from schemas.ids import PersonId, account_stream
from schemas.ledger import CodeIssued, CodeKind, CodeRedeemed
from schemas.money import MicroPoints
from tests.model.ground import Streams
from tests.model.histories import histories_of

PEOPLE = st.sampled_from([1, 1, 2, 3, 4])
OPENED = 3
"""People who have an account; the last one has none."""
WHICH = st.sampled_from(range(5))
HOUR_US = 3_600_000_000


class Paper(msgspec.Struct):
    """A code as somebody holds it in their hand."""

    kind: CodeKind
    worth: int
    type: str
    until_us: int | None
    gone: bool = False


class CodeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.streams = Streams()
        self.papers: dict[int, Paper] = {}
        self.points = dict.fromkeys(range(1, 5), 0)
        self.gifts: set[tuple[int, str]] = set()

    @initialize(gifts=st.booleans())
    def open(self, gifts: bool) -> None:
        for person in range(1, OPENED + 1):

            def decide(given: Any, at_us: int, person: int = person) -> Decision:
                return decide_open(given[0].state, given[0].version, PersonId(person))

            self.streams.submit((account_stream(PersonId(person)),), decide)
        for which in (0, 1):
            kind = CodeKind.GIFT if gifts else CodeKind.REDEEM
            self.issue(which, kind, 5_000 + which, "welcome", None)

    @rule(
        which=WHICH,
        kind=st.sampled_from(CodeKind),
        worth=st.integers(1, 10_000),
        type_=st.sampled_from(["new year", "welcome"]),
        hours=st.sampled_from([None, None, 3, 30]),
    )
    def issue(self, which: int, kind: CodeKind, worth: int, type_: str, hours: int | None) -> None:
        until_us = None if hours is None else self.streams.at_us + hours * HOUR_US
        type_ = type_ if kind is CodeKind.GIFT else ""
        event = CodeIssued(kind, MicroPoints(worth), "batch", "ABCD", "cli", type_, until_us)
        answer = self.streams.submit(
            (f"code:{which}",), lambda given, at_us: decide_issue_code(given[0], event)
        )
        if which in self.papers:
            assert answer == Refuse(AlreadyOpen())
        else:
            assert answer == (event,)
            self.papers[which] = Paper(kind, worth, type_, until_us)

    @rule(which=WHICH, person=PEOPLE, mistaken=st.sampled_from([False, False, False, True]))
    def redeem(self, which: int, person: int, mistaken: bool) -> None:
        kind = self.papers[which].kind if which in self.papers else CodeKind.REDEEM
        if mistaken:
            kind = CodeKind.GIFT if kind is CodeKind.REDEEM else CodeKind.REDEEM
        account, code = account_stream(PersonId(person)), f"code:{which}"

        def decide(given: Any, at_us: int) -> Decision:
            decision = decide_redeem(given[1], given[0], kind, PersonId(person), at_us)
            if isinstance(decision, Refuse):
                return decision
            return Accept(tuple((1 - index, event) for index, event in decision.events))

        answer = self.streams.submit((account, code), decide)
        paper, refusal = self.papers.get(which), self.refusal(which, person, kind)
        if refusal is not None:
            assert isinstance(answer, Refuse)
            assert type(answer.reason) is refusal
            return
        assert isinstance(answer, tuple)
        assert paper is not None
        assert [type(event).__name__ for event in answer] == [
            "CodeRedeemed",
            "GiftTaken" if kind is CodeKind.GIFT else "PointsGranted",
        ]
        paper.gone = True
        self.points[person] += paper.worth
        if kind is CodeKind.GIFT:
            self.gifts.add((person, paper.type))

    def refusal(self, which: int, person: int, kind: CodeKind) -> type | None:
        paper = self.papers.get(which)
        if person > OPENED:
            return NoSuchAccount
        if paper is None:
            return UnknownCode
        if paper.gone or (paper.until_us is not None and self.streams.at_us >= paper.until_us):
            return SpentCode
        if paper.kind is not kind:
            return OtherKindOfCode
        if kind is CodeKind.GIFT and (person, paper.type) in self.gifts:
            return GiftTakenBefore
        return None

    @rule(which=WHICH)
    def void(self, which: int) -> None:
        answer = self.streams.submit(
            (f"code:{which}",), lambda given, at_us: decide_void_code(given[0], "cli")
        )
        paper = self.papers.get(which)
        assert isinstance(answer, tuple) is (paper is not None and not paper.gone)
        if paper is not None:
            paper.gone = True

    @rule(person=PEOPLE, worth=st.integers(-1, 5_000), invited=st.integers(5, 9))
    def reward(self, person: int, worth: int, invited: int) -> None:
        answer = self.streams.submit(
            (account_stream(PersonId(person)),),
            lambda given, at_us: decide_invitation_reward(
                given[0].state, given[0].version, MicroPoints(worth), PersonId(invited)
            ),
        )
        assert isinstance(answer, tuple) is (worth > 0 and person <= OPENED)
        if isinstance(answer, tuple):
            self.points[person] += worth

    @rule(hours=st.sampled_from([1, 20]))
    def time_passes(self, hours: int) -> None:
        self.streams.at_us += hours * HOUR_US

    @invariant()
    def everybody_has_what_they_were_given(self) -> None:
        for person, points in self.points.items():
            state = self.streams.state(account_stream(PersonId(person)))
            assert (state.issued_upt, state.available_upt) == (points, points)
            assert len(state.gifts) == len(set(state.gifts))
            assert set(state.gifts) == {type_ for who, type_ in self.gifts if who == person}

    @invariant()
    def a_code_that_is_gone_stays_so(self) -> None:
        for which, paper in self.papers.items():
            state = self.streams.state(f"code:{which}")
            assert (state.person > 0 or state.voided) is paper.gone

    def teardown(self) -> None:
        used = [stream for stream, event in self.streams.events if isinstance(event, CodeRedeemed)]
        assert len(used) == len(set(used)), "I5"
        self.streams.assert_sound()


TestCodeMachine = histories_of(CodeMachine, histories=2_200, steps=8)
