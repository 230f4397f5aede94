"""Subscriptions from the events alone: what was paid and credited, and calls that plans paid for.

Pure. It does its own arithmetic, in exact fractions, and trusts none of the ledger's.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import msgspec

from projections.audit.report import PLANS, Findings
from schemas.event import Recorded
from schemas.ledger import PlanBought, PlanChanged, PlanExpired, PlanRenewed
from schemas.plans import UNLIMITED, Plan, PlanRef, PlanUse, Segment
from schemas.prices import PPM

CARRY: Final = 1_000_000_000


class Line(msgspec.Struct, array_like=True):
    """One account's subscription."""

    level: int
    segments: list[Segment]
    carry: int = 0
    period_us: int = 0
    used: dict[str, int] = {}


class _Paid(msgspec.Struct, frozen=True, array_like=True):
    """A price that was paid for a term; checked when the plan's version is known."""

    level: int
    version: int
    months: int
    paid_upt: int


class _Most(msgspec.Struct, array_like=True):
    """The most calls of an item that were counted while a version of its plan said how many."""

    calls: int
    stream: str
    version: int


class PlansSaved(msgspec.Struct, array_like=True):
    """All that the books know, to go on with."""

    plans: list[tuple[int, int, Plan]]
    paid: list[tuple[_Paid, str, int]]
    most: list[tuple[int, int, str, _Most]]


class PlanBooks:
    """Works on the `Line` of an account that the caller keeps; `finish` when all have passed."""

    def __init__(self, findings: Findings) -> None:
        self._findings: Final = findings
        self._plans: Final[dict[tuple[int, int], Plan]] = {}
        self._paid: Final[dict[_Paid, tuple[str, int]]] = {}
        self._most: Final[dict[tuple[int, int, str], _Most]] = {}

    def defined(self, level: int, version: int, plan: Plan) -> None:
        self._plans[level, version] = plan

    def bought(self, row: Recorded, line: Line | None, event: PlanBought) -> tuple[Line, int]:
        """The line after it, and what was charged."""
        if line is not None:
            self._note(row, "a plan is bought where there is one")
        return self._begun(row, event.plan, event.months, event.segment), event.segment.paid_upt

    def renewed(self, row: Recorded, line: Line | None, event: PlanRenewed) -> tuple[Line, int]:
        if line is None or line.level != event.plan.level:
            self._note(row, "a plan is renewed that is not had")
            return self._begun(row, event.plan, event.months, event.segment), event.segment.paid_upt
        if event.segment.from_us != line.segments[-1].until_us:
            self._note(row, "renewed time does not begin where the old ends")
        self._pay(row, event.plan, event.months, event.segment)
        kept = [segment for segment in line.segments if segment.until_us > row.at_us]
        line.segments = [*kept, event.segment]
        return line, event.segment.paid_upt

    def changed(self, row: Recorded, line: Line | None, event: PlanChanged) -> tuple[Line, int]:
        """What was left of the old level is credited, to a thousand-millionth of a micro-point."""
        after = self._begun(row, event.plan, event.months, event.segment)
        charged_upt = event.segment.paid_upt - event.credit_upt
        if line is None:
            self._note(row, "a plan is changed where there is none")
            return after, charged_upt
        value = Fraction(line.carry, CARRY)
        for segment in line.segments:
            left_us = max(0, segment.until_us - max(row.at_us, segment.from_us))
            value += Fraction(segment.paid_upt * left_us, segment.until_us - segment.from_us)
        lost = value - event.credit_upt - Fraction(event.carry, CARRY)
        if not 0 <= lost <= Fraction(len(line.segments), CARRY) or not 0 <= event.carry < CARRY:
            whole_upt = value.numerator // value.denominator
            self._note(row, f"credits {event.credit_upt} where {whole_upt} was left")
        after.carry, after.period_us, after.used = event.carry, line.period_us, line.used
        return after, charged_upt

    def expired(self, row: Recorded, line: Line | None, event: PlanExpired) -> None:
        if line is None or line.segments[-1].until_us > row.at_us:
            self._note(row, "a plan expires that is not over")

    def used(self, row: Recorded, line: Line | None, use: PlanUse) -> None:
        """A call that a plan pays for."""
        if line is None or line.level != use.plan.level:
            self._note(row, "a plan pays that is not had")
            return
        if line.segments[-1].until_us <= row.at_us:
            self._note(row, "a plan pays that is over")
        if use.period_us != line.period_us:
            line.period_us, line.used = use.period_us, {}
        calls = line.used[use.item] = line.used.get(use.item, 0) + 1
        key = (use.plan.level, use.plan.version, use.item)
        most = self._most.get(key)
        if most is None or calls > most.calls:
            self._most[key] = _Most(calls, row.stream, row.version)

    def given_back(self, line: Line | None, use: PlanUse) -> None:
        """The call cost nothing: its unit is there again."""
        if line is not None and line.period_us == use.period_us:
            line.used[use.item] = line.used.get(use.item, 0) - 1

    def finish(self) -> None:
        """What waited for the plans' definitions."""
        for paid, (stream, version) in self._paid.items():
            plan = self._plans.get((paid.level, paid.version))
            due_upt = None if plan is None else _price_of(plan, paid.months)
            if due_upt != paid.paid_upt:
                what = f"{paid.paid_upt} paid for a term that costs {due_upt}"
                self._findings.add(PLANS, stream, version, what)
        for (level, number, item_id), most in self._most.items():
            plan = self._plans.get((level, number))
            items = () if plan is None else plan.items
            calls = next((item.monthly_calls for item in items if item.id == item_id), 0)
            if calls != UNLIMITED and most.calls > calls:
                what = f"{most.calls} calls of item {item_id!r}, which has {calls} a month"
                self._findings.add(PLANS, most.stream, most.version, what)

    def saved(self) -> PlansSaved:
        return PlansSaved(
            [(*name, plan) for name, plan in self._plans.items()],
            [(paid, *place) for paid, place in self._paid.items()],
            [(*name, most) for name, most in self._most.items()],
        )

    def resume(self, saved: PlansSaved) -> None:
        for level, version, plan in saved.plans:
            self._plans[level, version] = plan
        for paid, stream, version in saved.paid:
            self._paid[paid] = (stream, version)
        for level, version, item, most in saved.most:
            self._most[level, version, item] = most

    def _begun(self, row: Recorded, plan: PlanRef, months: int, segment: Segment) -> Line:
        if segment.from_us != row.at_us:
            self._note(row, "a plan begins at another time than it is bought")
        self._pay(row, plan, months, segment)
        return Line(plan.level, [segment])

    def _pay(self, row: Recorded, plan: PlanRef, months: int, segment: Segment) -> None:
        paid = _Paid(plan.level, plan.version, months, segment.paid_upt)
        self._paid.setdefault(paid, (row.stream, row.version))

    def _note(self, row: Recorded, what: str) -> None:
        self._findings.add(PLANS, row.stream, row.version, what)


def _price_of(plan: Plan, months: int) -> int:
    """Rounded up to a micro-point, in fractions."""
    full = Fraction(plan.month_price_upt * months)
    taken_off = Fraction(dict(plan.discounts).get(months, 0), PPM)
    price = full * (1 - taken_off)
    return -(-price.numerator // price.denominator)
