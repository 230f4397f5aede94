"""Folds recorded usage under two sets of prices: the recorded versions, and others.

Pure. A settlement is computed from usage, version and terms; its recorded amount is only compared.
Memory is bounded by accounts × models, open settles, and requests that a sweep ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec

from projections.reprice.prices import Versions, WhatIf
from projections.reprice.report import ANOMALIES_MAX, Anomaly, RepriceReport, Sums, added
from schemas.event import Recorded
from schemas.ids import kind_of
from schemas.ledger import HoldReleased, HoldSettled, ReleaseReason, ShortfallRecorded, UsageLate
from schemas.plans import PlanUse
from schemas.prices import PriceRef, Terms, cost_of
from schemas.registry import decode
from schemas.usage import Usage

TYPES: Final = frozenset({"HoldSettled", "HoldReleased", "ShortfallRecorded", "UsageLate"})
_ACCOUNT: Final = "account"


class _Accounted(msgspec.Struct, frozen=True, gc=False):
    """What a sweep took of a request's cost, as recorded and as it would have been."""

    recorded_upt: int = 0
    what_if_upt: int = 0
    cost_upt: int = 0
    list_upt: int = 0
    list_what_if_upt: int = 0


_NOTHING: Final = _Accounted()


class _Charge(msgspec.Struct, gc=False):
    """A settle whose shortfall may still follow, or late usage."""

    row: Recorded
    request_id: str
    price: PriceRef
    usage: Usage
    terms: Terms
    plan: PlanUse | None
    charged_upt: int
    shortfall_upt: int = 0
    before: _Accounted = _NOTHING
    swept: bool = False


class Repricing:
    """`feed` takes the log's pages in order; `finish` when all have passed."""

    def __init__(self, versions: Versions, what_if: WhatIf, since_us: int, until_us: int) -> None:
        self._versions: Final = versions
        self._what_if: Final = what_if
        self._since_us: Final = since_us
        self._until_us: Final = until_us
        self._open: Final[dict[str, _Charge]] = {}
        self._swept: Final[dict[UUID, _Accounted]] = {}
        self._rows: Final[dict[tuple[str, str], Sums]] = {}
        self._anomalies: Final[list[Anomaly]] = []
        self._anomalies_count = 0

    def feed(self, page: Sequence[Recorded]) -> None:
        """Raises UndecodableEvent."""
        for row in page:
            if kind_of(row.stream) == _ACCOUNT:
                self._take(row)

    def finish(self) -> RepriceReport:
        for charge in self._open.values():
            self._close(charge)
        self._open.clear()
        rows = dict(sorted(self._rows.items()))
        models: dict[str, list[Sums]] = {}
        accounts: dict[str, list[Sums]] = {}
        for (stream, model), sums in rows.items():
            accounts.setdefault(stream, []).append(sums)
            models.setdefault(model, []).append(sums)
        return RepriceReport(
            since_us=self._since_us,
            until_us=self._until_us,
            total=added(rows.values()),
            models={name: added(models[name]) for name in sorted(models)},
            accounts={name: added(parts) for name, parts in accounts.items()},
            rows=rows,
            anomalies=tuple(self._anomalies),
            anomalies_count=self._anomalies_count,
        )

    def _take(self, row: Recorded) -> None:
        before = self._open.get(row.stream)
        if before is not None and row.type != ShortfallRecorded.__name__:
            # A shortfall directly follows its settle; whatever else comes says there was none.
            self._close(self._open.pop(row.stream))
        if row.type not in TYPES:
            return
        match decode(row):
            case HoldSettled() as event:
                charge = _charge(row, event)
                charge.swept = event.swept
                self._open[row.stream] = charge
            case ShortfallRecorded(request_id, amount_upt):
                if before is not None and before.request_id == request_id:
                    before.shortfall_upt += amount_upt
            case HoldReleased(reason=ReleaseReason.SWEPT):
                self._swept[row.event_id] = _NOTHING
            case UsageLate() as event:
                charge = _charge(row, event)
                charge.shortfall_upt = event.shortfall_upt
                charge.before = self._swept.pop(event.sweep_event_id, _NOTHING)
                self._close(charge)
            case _:
                pass

    def _close(self, charge: _Charge) -> None:
        """The charge is complete: computes it at both prices."""
        recorded_upt = charge.charged_upt + charge.shortfall_upt
        price = self._versions.get(charge.price)
        model = charge.price.model
        other = self._what_if.prices.get(model, price)
        taken = self._what_if.costs.get(model)
        cost_upt = 0
        if taken is not None:
            # What a provider takes does not depend on the asker's group.
            cost_upt = cost_of(taken, charge.usage, Terms(charge.terms.at_us))
        list_upt = 0 if price is None else cost_of(price, charge.usage, charge.terms)
        # Nothing to compute from: the amount stands, and stands out as an anomaly.
        whole = charge.before.recorded_upt + recorded_upt
        list_what_if_upt = whole if other is None else cost_of(other, charge.usage, charge.terms)
        now = _Accounted(recorded_upt, list_what_if_upt, cost_upt, list_upt, list_what_if_upt)
        if charge.plan is not None:
            now = msgspec.structs.replace(now, what_if_upt=0)
        if charge.swept:
            self._swept[charge.row.event_id] = now
        if self._since_us <= charge.row.at_us < self._until_us:
            self._check(charge, recorded_upt, None if price is None else list_upt)
            self._add(charge, now, priced=taken is not None)

    def _check(self, charge: _Charge, recorded_upt: int, list_upt: int | None) -> None:
        due_upt = None if list_upt is None else max(0, list_upt - charge.before.recorded_upt)
        if charge.plan is not None and due_upt is not None:
            due_upt = 0
        if due_upt == recorded_upt:
            return
        self._anomalies_count += 1
        if len(self._anomalies) < ANOMALIES_MAX:
            row = charge.row
            self._anomalies.append(
                Anomaly(
                    row.stream, row.version, row.event_id, charge.request_id, recorded_upt, due_upt
                )
            )

    def _add(self, charge: _Charge, now: _Accounted, *, priced: bool) -> None:
        key = (charge.row.stream, charge.price.model)
        sums = self._rows.get(key)
        if sums is None:
            sums = self._rows[key] = Sums()
        before = charge.before
        what_if_upt = max(0, now.what_if_upt - before.what_if_upt)
        cost_upt = max(0, now.cost_upt - before.cost_upt)
        sums.settlements += 1
        sums.charged_upt += charge.charged_upt
        sums.shortfall_upt += charge.shortfall_upt
        sums.what_if_upt += what_if_upt
        if charge.plan is not None:
            sums.plan_calls += 1
            sums.plan_list_upt += max(0, now.list_upt - before.list_upt)
            sums.plan_list_what_if_upt += max(0, now.list_what_if_upt - before.list_what_if_upt)
            sums.plan_cost_upt += cost_upt
        elif priced:
            sums.priced_upt += now.recorded_upt
            sums.priced_what_if_upt += what_if_upt
            sums.cost_upt += cost_upt


def _charge(row: Recorded, event: HoldSettled | UsageLate) -> _Charge:
    return _Charge(
        row=row,
        request_id=event.request_id,
        price=event.price,
        usage=event.usage,
        terms=event.terms,
        plan=event.plan,
        charged_upt=event.amount_upt,
    )
