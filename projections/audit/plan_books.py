"""Subscriptions from the events alone: what was paid and credited, and calls that plans paid for.

Pure. It does its own arithmetic of money, in exact fractions; only the calendar is the ledger's.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import msgspec

from backend.ledger.quota import CLOCKS_DIFFER_US
from backend.ledger.subscription import add_months, period_of
from projections.audit.report import PLANS, Findings
from schemas.event import Recorded
from schemas.ledger import (
    RELAY_PURPOSES,
    PlanBought,
    PlanChanged,
    PlanExpired,
    PlanRenewed,
    PointsHeld,
)
from schemas.plans import UNLIMITED, Plan, PlanRef, PlanUse, Segment
from schemas.prices import PPM

CARRY: Final = 1_000_000_000


class Line(msgspec.Struct, array_like=True):
    """One account's subscription."""

    level: int
    segments: list[Segment]
    time_zone: str
    anchor_us: int
    term_us: int
    term_months: int
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


class _Covered(msgspec.Struct, frozen=True, array_like=True):
    """What a plan's version must say for a call that it paid for."""

    level: int
    version: int
    item: str
    model: str
    by_relay: bool


class PlansSaved(msgspec.Struct, array_like=True):
    """All that the books know, to go on with."""

    plans: list[tuple[int, int, Plan]]
    paid: list[tuple[_Paid, str, int]]
    most: list[tuple[int, int, str, _Most]]
    covered: list[tuple[_Covered, str, int]]


class PlanBooks:
    """Works on the `Line` of an account that the caller keeps; `finish` when all have passed."""

    def __init__(self, findings: Findings) -> None:
        self._findings: Final = findings
        self._plans: Final[dict[tuple[int, int], Plan]] = {}
        self._paid: Final[dict[_Paid, tuple[str, int]]] = {}
        self._most: Final[dict[tuple[int, int, str], _Most]] = {}
        self._covered: Final[dict[_Covered, tuple[str, int]]] = {}

    def defined(self, level: int, version: int, plan: Plan) -> None:
        self._plans[level, version] = plan

    def bought(self, row: Recorded, line: Line | None, event: PlanBought) -> tuple[Line, int]:
        """The line after it, and what was charged."""
        if line is not None:
            self._note(row, "a plan is bought where there is one")
        if event.anchor_us != event.segment.from_us:
            self._note(row, "periods are counted from another time than the purchase")
        begun = self._begun(row, event.plan, event.months, event.segment, event.time_zone)
        return begun, event.segment.paid_upt

    def renewed(self, row: Recorded, line: Line | None, event: PlanRenewed) -> tuple[Line, int]:
        if line is None or line.level != event.plan.level:
            self._note(row, "a plan is renewed that is not had")
            begun = self._begun(row, event.plan, event.months, event.segment, "UTC")
            return begun, event.segment.paid_upt
        if event.segment.from_us != line.segments[-1].until_us:
            self._note(row, "renewed time does not begin where the old ends")
        self._pay(row, event.plan, event.months, event.segment)
        line.term_months += event.months
        self._check_end(row, line, event.segment)
        kept = [segment for segment in line.segments if segment.until_us > row.at_us]
        line.segments = [*kept, event.segment]
        return line, event.segment.paid_upt

    def changed(self, row: Recorded, line: Line | None, event: PlanChanged) -> tuple[Line, int]:
        """What was left of the old level is credited, to a thousand-millionth of a micro-point."""
        after = self._begun(row, event.plan, event.months, event.segment, event.time_zone)
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
        if event.time_zone != line.time_zone:
            self._note(row, "a change moves the periods to another time zone")
        after.anchor_us, after.carry = line.anchor_us, event.carry
        after.period_us, after.used = line.period_us, line.used
        return after, charged_upt

    def expired(self, row: Recorded, line: Line | None, event: PlanExpired) -> None:
        if line is None or line.segments[-1].until_us > row.at_us:
            self._note(row, "a plan expires that is not over")

    def used(self, row: Recorded, line: Line | None, event: PointsHeld, use: PlanUse) -> None:
        """A call that a plan pays for."""
        by_relay = event.purpose.startswith(RELAY_PURPOSES)
        covered = _Covered(use.plan.level, use.plan.version, use.item, event.model, by_relay)
        self._covered.setdefault(covered, (row.stream, row.version))
        if line is None or line.level != use.plan.level:
            self._note(row, "a plan pays that is not had")
            return
        if line.segments[-1].until_us <= row.at_us:
            self._note(row, "a plan pays that is over")
        # Clocks may be an hour apart, and a period that has begun is not left again.
        nearest = {
            period_of(line.anchor_us, line.time_zone, at_us)
            for at_us in (row.at_us, row.at_us + CLOCKS_DIFFER_US)
        }
        if use.period_us not in nearest:
            self._note(row, "a call is counted in another period than its own")
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

        for covered, (stream, version) in self._covered.items():
            plan = self._plans.get((covered.level, covered.version))
            if plan is None or not _covers(plan, covered):
                what = f"item {covered.item!r} does not pay for model {covered.model!r} here"
                self._findings.add(PLANS, stream, version, what)

    def saved(self) -> PlansSaved:
        return PlansSaved(
            [(*name, plan) for name, plan in self._plans.items()],
            [(paid, *place) for paid, place in self._paid.items()],
            [(*name, most) for name, most in self._most.items()],
            [(covered, *place) for covered, place in self._covered.items()],
        )

    def resume(self, saved: PlansSaved) -> None:
        for level, version, plan in saved.plans:
            self._plans[level, version] = plan
        for paid, stream, version in saved.paid:
            self._paid[paid] = (stream, version)
        for level, version, item, most in saved.most:
            self._most[level, version, item] = most
        for covered, stream, version in saved.covered:
            self._covered[covered] = (stream, version)

    def _begun(
        self, row: Recorded, plan: PlanRef, months: int, segment: Segment, time_zone: str
    ) -> Line:
        if segment.from_us != row.at_us:
            self._note(row, "a plan begins at another time than it is bought")
        self._pay(row, plan, months, segment)
        line = Line(plan.level, [segment], time_zone, segment.from_us, segment.from_us, months)
        self._check_end(row, line, segment)
        return line

    def _check_end(self, row: Recorded, line: Line, segment: Segment) -> None:
        """So many months were paid, and so many calendar months later they end."""
        if segment.until_us != add_months(line.term_us, line.term_months, line.time_zone):
            self._note(row, "paid time ends at another moment than its months do")

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


def _covers(plan: Plan, covered: _Covered) -> bool:
    if covered.by_relay and not plan.relay:
        return False
    return any(item.id == covered.item and covered.model in item.models for item in plan.items)
