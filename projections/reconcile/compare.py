"""Compares a bill with our own counts, cell by cell, and says why they differ. Pure.

A difference is explained where the provider's counts lie within what the doubtful requests allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from itertools import combinations
from typing import Final

import msgspec

from projections.reconcile.bill import USED_FIELDS, Bill, BillLine, Period, Used
from projections.reconcile.names import groups_of
from projections.reconcile.ours import IDS_MAX, Cause, Cell, Count
from projections.reconcile.tariff import NO_TARIFF, Tariff


class Reason(StrEnum):
    EQUAL = "equal"
    WITHIN_ROUNDING = "within_rounding"
    PERIOD_BOUNDARY = "period_boundary"
    """Requests at the period's edge may stand in the one beside."""
    COUNTED_TOKENS = "counted_tokens"
    """Our tokenizer counted where the provider reported nothing."""
    OURS_LACKS_REQUESTS = "ours_lacks_requests"
    """The client left, a sweep ended it, or it was given up or tried again; the provider billed."""
    PROVIDER_LACKS_REQUESTS = "provider_lacks_requests"
    """We settled, after a sweep, what the provider does not know."""
    UNKNOWN_MODEL = "unknown_model"
    """No request of ours in the whole bill's time used it by these channels."""
    PRICE_DIFFERENCE = "price_difference"
    """The cost is not what the counts come to at the prices given."""
    COST_NOT_CHECKED = "cost_not_checked"
    """The usage is compared by itself, and no price is given to check this cost with."""
    UNEXPLAINED = "unexplained"


class Finding(msgspec.Struct, frozen=True):
    """One model in one period. Counts the bill does not give are folded into input, or None."""

    period: Period
    model: str
    ours: Used
    theirs: Used
    difference: Used
    """Theirs less ours."""
    reasons: tuple[Reason, ...]
    request_ids: tuple[str, ...] = ()
    """Most likely involved, at most IDS_MAX."""
    charged_upt: int = 0
    """What our users were charged for it, micro-points."""
    cost: Decimal | None = None
    """In the bill's currency."""
    expected_cost: Decimal | None = None
    """At the prices given, or the bill's own."""

    @property
    def explained(self) -> bool:
        return Reason.UNEXPLAINED not in self.reasons


class Reconciliation(msgspec.Struct, frozen=True):
    currency: str
    findings: tuple[Finding, ...]

    @property
    def explained(self) -> bool:
        return all(finding.explained for finding in self.findings)


Cells = Mapping[tuple[int, str], Cell]
"""By index of the period and upstream model."""

_CAUSES: Final = (Cause.EDGE, Cause.COUNTED, Cause.LOST)
_SETS: Final = tuple(some for size in (0, 1, 2, 3) for some in combinations(_CAUSES, size))
"""The fewest causes that do explain."""
_AT_EASE: Final = {Reason.EQUAL, Reason.WITHIN_ROUNDING, Reason.COST_NOT_CHECKED}
_NOTHING: Final = Used()


def reconcile(bill: Bill, cells: Cells, tariff: Tariff = NO_TARIFF) -> Reconciliation:
    """`cells` are ours for `bill.periods`, complete."""
    comparison = _Comparison(bill, cells, tariff)
    findings = sorted(comparison.findings(), key=lambda one: (one.period, one.model))
    return Reconciliation(bill.currency or tariff.currency, tuple(findings))


class _Comparison:
    def __init__(self, bill: Bill, cells: Cells, tariff: Tariff) -> None:
        self._bill: Final = bill
        self._tariff: Final = tariff
        asked = {model for _, model in cells}
        billed = [line.model for line in (*bill.usage, *bill.costs)]
        self._groups: Final = groups_of(asked, billed)
        self._known: Final = {self._groups[model] for model in asked}
        self._ours: Final = _grouped_cells(cells, self._groups)
        self._usage: Final = _grouped_lines(bill.usage, self._groups)
        self._costs: Final = _grouped_lines(bill.costs, self._groups)

    def findings(self) -> Iterator[Finding]:
        if self._bill.usage or not self._bill.costs:
            yield from self._usage_findings()
            known = set(self._usage)
        else:
            known = set[tuple[Period, str]]()
        for key in self._costs.keys() - known:
            yield self._cost_finding(*key)

    def _usage_findings(self) -> Iterator[Finding]:
        for index, period in enumerate(self._bill.periods):
            models = {model for at, model in self._usage if at == period}
            models |= {model for at, model in self._ours if at == index}
            for model in sorted(models):
                cell = self._ours.get((index, model), Cell())
                line = self._usage.get((period, model))
                if line is not None or cell.count != Count():
                    yield self._finding(period, model, cell, line)

    def _finding(self, period: Period, model: str, cell: Cell, line: BillLine | None) -> Finding:
        says = self._bill_says()
        theirs = _Counts(_filled(_NOTHING if line is None else line.used), says)
        ours = _Counts(cell.count, says)
        difference = theirs.less(ours)
        rounding = 0 if line is None else line.rounding
        reasons, ids = self._reasons(model, cell, difference, says, rounding)
        cost_line = self._costs.get((period, model))
        cost = None if cost_line is None else cost_line.cost
        expected = None
        if cost_line is not None and line is not None:
            expected = self._expected(model, line.used, cost_line)
            if _price_differs(cost_line, expected):
                reasons = (*(r for r in reasons if r is not Reason.EQUAL), Reason.PRICE_DIFFERENCE)
        return Finding(
            period,
            model,
            ours.used(),
            theirs.used(),
            difference.used(),
            reasons,
            tuple(ids),
            cell.charged_upt,
            cost,
            expected,
        )

    def _reasons(
        self, model: str, cell: Cell, difference: _Counts, says: frozenset[str], rounding: int
    ) -> tuple[tuple[Reason, ...], list[str]]:
        if difference.is_nothing():
            return (Reason.EQUAL,), []
        if model not in self._known:
            return (Reason.UNKNOWN_MODEL,), []
        for some in _SETS:
            low, high = _range(cell, some, says)
            if difference.lies_between(low, high, rounding):
                if not some:
                    return (Reason.WITHIN_ROUNDING,), []
                return tuple(_reason(cause, difference) for cause in some), _ids(cell, some)
        return (Reason.UNEXPLAINED,), _ids(cell, _CAUSES) or [
            request_id for _, request_id in cell.named.ids()
        ]

    def _cost_finding(self, period: Period, model: str) -> Finding:
        """A cost whose period is not one of the usage's, or that has no usage beside it."""
        line = self._costs[(period, model)]
        theirs = self._usage_within(period, model)
        cell = self._cell_within(period, model)
        counted = theirs if theirs is not None else _used_of(cell.count)
        expected = self._expected(model, counted, line)
        reasons = self._cost_reasons(model, line, expected, cell, measured=theirs is not None)
        ids = _ids(cell, _CAUSES) if set(reasons) - _AT_EASE else []
        return Finding(
            period,
            model,
            _used_of(cell.count),
            theirs or _NOTHING,
            _NOTHING,
            reasons,
            tuple(ids),
            cell.charged_upt,
            line.cost,
            expected,
        )

    def _cost_reasons(
        self, model: str, line: BillLine, expected: Decimal | None, cell: Cell, *, measured: bool
    ) -> tuple[Reason, ...]:
        if model not in self._known:
            return (Reason.UNKNOWN_MODEL,)
        if expected is None:
            return (Reason.COST_NOT_CHECKED,) if measured else (Reason.UNEXPLAINED,)
        if not _price_differs(line, expected):
            return (Reason.EQUAL,) if line.cost == expected else (Reason.WITHIN_ROUNDING,)
        if measured:
            return (Reason.PRICE_DIFFERENCE,)
        assert line.cost is not None, "a cost line has a cost"
        for some in _SETS[1:]:
            low, high = _range(cell, some, frozenset(USED_FIELDS))
            least = self._tariff.cost(model, _used_of(cell.count.plus(low.count)))
            most = self._tariff.cost(model, _used_of(cell.count.plus(high.count)))
            if least is not None and most is not None and least <= line.cost <= most:
                more = _Counts(Count(output=1 if line.cost > expected else -1), frozenset())
                return tuple(_reason(cause, more) for cause in some)
        return (Reason.UNEXPLAINED,)

    def _expected(self, model: str, used: Used, line: BillLine) -> Decimal | None:
        at_tariff = self._tariff.cost(model, used)
        return line.listed if at_tariff is None else at_tariff

    def _usage_within(self, period: Period, model: str) -> Used | None:
        lines = [
            line
            for (at, name), line in self._usage.items()
            if name == model and period.from_us <= at.from_us and at.to_us <= period.to_us
        ]
        total = Count()
        for line in lines:
            total = total.plus(_filled(line.used))
        return _used_of(total) if lines else None

    def _cell_within(self, period: Period, model: str) -> Cell:
        total = Cell()
        for index, at in enumerate(self._bill.periods):
            if period.from_us <= at.from_us and at.to_us <= period.to_us:
                cell = self._ours.get((index, model))
                if cell is not None:
                    total.take(cell)
        return total

    def _bill_says(self) -> frozenset[str]:
        """What this bill counts at all."""
        return frozenset(
            name
            for name in USED_FIELDS
            if any(getattr(line.used, name) is not None for line in self._bill.usage)
        )


class _Counts:
    """Counts as far as a bill tells them: what it does not tell apart is input."""

    __slots__ = ("count", "says")

    def __init__(self, count: Count, says: frozenset[str]) -> None:
        uncached, cached, write = count.uncached, count.cached, count.cache_write
        if says and "cache_write" not in says:
            uncached, write = uncached + write, 0
        if says and "cached" not in says:
            uncached, cached = uncached + cached, 0
        requests = count.requests if not says or "requests" in says else 0
        self.count = Count(requests, uncached, cached, write, count.output)
        self.says = says

    def less(self, other: _Counts) -> _Counts:
        return _Counts(self.count.plus(other.count.negated()), self.says)

    def is_nothing(self) -> bool:
        return self.count == Count()

    def lies_between(self, low: _Counts, high: _Counts, rounding: int) -> bool:
        return low.count.requests <= self.count.requests <= high.count.requests and all(
            getattr(low.count, name) - rounding
            <= getattr(self.count, name)
            <= getattr(high.count, name) + rounding
            for name in USED_FIELDS[1:]
        )

    def used(self) -> Used:
        """None where the bill does not say."""
        return Used(
            **{
                name: getattr(self.count, name) if not self.says or name in self.says else None
                for name in USED_FIELDS
            }
        )


def _range(cell: Cell, causes: Sequence[Cause], says: frozenset[str]) -> tuple[_Counts, _Counts]:
    low, high = Count(), Count()
    for cause in causes:
        spread = cell.spreads.get(cause)
        if spread is not None:
            low, high = low.plus(spread.low), high.plus(spread.high)
    return _Counts(low, says), _Counts(high, says)


def _reason(cause: Cause, difference: _Counts) -> Reason:
    match cause:
        case Cause.EDGE:
            return Reason.PERIOD_BOUNDARY
        case Cause.COUNTED:
            return Reason.COUNTED_TOKENS
        case Cause.LOST:
            direction = difference.count.requests or difference.count.tokens
            if direction < 0:
                return Reason.PROVIDER_LACKS_REQUESTS
            return Reason.OURS_LACKS_REQUESTS


def _ids(cell: Cell, causes: Sequence[Cause]) -> list[str]:
    found: dict[str, int] = {}
    for cause in causes:
        spread = cell.spreads.get(cause)
        for tokens, request_id in [] if spread is None else spread.named.ids():
            found[request_id] = max(tokens, found.get(request_id, 0))
    return sorted(found, key=lambda one: (-found[one], one))[:IDS_MAX]


def _price_differs(line: BillLine, expected: Decimal | None) -> bool:
    if expected is None or line.cost is None:
        return False
    return abs(line.cost - expected) > line.cost_rounding


def _grouped_cells(cells: Cells, groups: Mapping[str, str]) -> dict[tuple[int, str], Cell]:
    grouped: dict[tuple[int, str], Cell] = {}
    for (index, model), cell in cells.items():
        grouped.setdefault((index, groups[model]), Cell()).take(cell)
    return grouped


def _grouped_lines(
    lines: Sequence[BillLine], groups: Mapping[str, str]
) -> dict[tuple[Period, str], BillLine]:
    grouped: dict[tuple[Period, str], BillLine] = {}
    for line in lines:
        key = (line.period, groups[line.model])
        before = grouped.get(key)
        named = msgspec.structs.replace(line, model=key[1])
        grouped[key] = named if before is None else before.joined(named)
    return grouped


def _filled(used: Used) -> Count:
    return Count(**{name: getattr(used, name) or 0 for name in USED_FIELDS})


def _used_of(count: Count) -> Used:
    return Used(**{name: getattr(count, name) for name in USED_FIELDS})
