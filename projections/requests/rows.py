"""What each event does to a request's row. Pure; an event that cannot follow raises ValueError."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from backend.journal.consumer import PoisonEvent
from schemas.errors import InsufficientPoints, KeyQuotaSpent
from schemas.event import Recorded
from schemas.ids import RequestId
from schemas.ledger import (
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsHeld,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.plans import PlanUse
from schemas.prices import PPM, Terms
from schemas.usage import Usage

REFUSED_AS: Final = {
    RefusalReason.INSUFFICIENT_POINTS: InsufficientPoints,
    RefusalReason.KEY_QUOTA: KeyQuotaSpent,
}
"""The error a client was told for each reason of a refusal."""

RequestKey = tuple[str, str]
"""(stream, request id)."""


class Outcome(StrEnum):
    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"
    REFUSED = "refused"
    LATE = "late"
    """Swept first; then the real usage arrived."""


class RequestRow(msgspec.Struct, gc=False):
    """A row of `requests`, in the query's column order; changed in place while a batch runs."""

    stream: str
    request_id: str
    outcome: str
    key: int
    model: str
    price_model: str
    price_version: int
    purpose: str | None
    streamed: bool | None
    held_upt: int
    charged_upt: int
    shortfall_upt: int
    missing_upt: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    basis: str | None
    channel: int | None
    upstream_model: str | None
    status: int | None
    error: str | None
    reason: str | None
    attempts: int
    swept: bool
    started_us: int
    ended_us: int | None
    duration_ms: int | None
    first_token_ms: int | None
    version: int
    group_name: str = ""
    multiplier_ppm: int = PPM
    plan_level: int | None = None
    plan_version: int | None = None
    plan_item: str | None = None
    cache_write_1h_tokens: int = 0
    images: int = 0
    seconds: int = 0
    characters: int = 0
    searches: int = 0


class RequestRows:
    """The rows that a batch touches."""

    def __init__(self, stored: dict[RequestKey, RequestRow]) -> None:
        self._rows: Final = stored
        self._changed: Final[dict[RequestKey, RequestRow]] = {}

    def changed(self) -> list[RequestRow]:
        return list(self._changed.values())

    def add(self, made: RequestRow) -> None:
        key = (made.stream, made.request_id)
        if key in self._rows:
            raise PoisonEvent(f"I3: {made.request_id} has begun already")
        self._rows[key] = self._changed[key] = made

    def take(self, row: Recorded, request_id: str, *outcomes: Outcome) -> RequestRow:
        """The request's row, about to be changed by the event of `row`."""
        key = (row.stream, request_id)
        found = self._rows.get(key)
        if found is None:
            raise PoisonEvent(f"I3: {request_id} was never let in")
        if found.outcome not in outcomes:
            raise PoisonEvent(f"I3: {request_id} is {found.outcome} and cannot become {row.type}")
        found.version = row.version
        self._changed[key] = found
        return found


def held(rows: RequestRows, row: Recorded, event: PointsHeld) -> None:
    made = _begun(row, event.request_id, Outcome.OPEN, event)
    made.purpose, made.streamed = event.purpose, event.streamed
    made.held_upt = event.amount_upt
    _terms(made, event.terms, event.plan)
    rows.add(made)


def extended(rows: RequestRows, row: Recorded, event: HoldExtended) -> None:
    rows.take(row, event.request_id, Outcome.OPEN).held_upt += event.amount_upt


def settled(rows: RequestRows, row: Recorded, event: HoldSettled) -> None:
    request = rows.take(row, event.request_id, Outcome.OPEN)
    request.outcome, request.ended_us = Outcome.SETTLED, row.at_us
    request.charged_upt = event.amount_upt
    request.price_model, request.price_version = event.price.model, event.price.version
    request.swept = event.swept
    _terms(request, event.terms, event.plan)
    _consumed(request, event.usage, event.basis)
    _served(request, event.served)


def released(rows: RequestRows, row: Recorded, event: HoldReleased) -> None:
    request = rows.take(row, event.request_id, Outcome.OPEN)
    request.outcome, request.ended_us = Outcome.RELEASED, row.at_us
    request.reason = event.reason
    request.swept = event.reason is ReleaseReason.SWEPT
    _served(request, event.served)


def fell_short(rows: RequestRows, row: Recorded, event: ShortfallRecorded) -> None:
    request = rows.take(row, event.request_id, Outcome.SETTLED)
    request.shortfall_upt += event.amount_upt


def late(rows: RequestRows, row: Recorded, event: UsageLate) -> None:
    """The real usage takes the place of what the sweep knew; charges add up."""
    request = rows.take(row, event.request_id, Outcome.SETTLED, Outcome.RELEASED)
    if not request.swept:
        raise PoisonEvent(f"I3: {event.request_id} was not swept, so nothing of it can be late")
    request.outcome = Outcome.LATE
    request.charged_upt += event.amount_upt
    request.shortfall_upt += event.shortfall_upt
    request.price_model, request.price_version = event.price.model, event.price.version
    _terms(request, event.terms, event.plan)
    _consumed(request, event.usage, event.basis)
    _served(request, event.served)


def refused(rows: RequestRows, row: Recorded, event: RequestRefused) -> None:
    made = _begun(row, event.request_id, Outcome.REFUSED, event)
    told = REFUSED_AS[event.reason]
    made.status, made.error, made.reason = told.status, told.code, event.reason
    made.missing_upt, made.ended_us = event.missing_upt, row.at_us
    rows.add(made)


def _begun(
    row: Recorded, request_id: RequestId, outcome: Outcome, event: PointsHeld | RequestRefused
) -> RequestRow:
    return RequestRow(
        stream=row.stream,
        request_id=request_id,
        outcome=outcome,
        key=event.key,
        model=event.model,
        price_model=event.price.model,
        price_version=event.price.version,
        purpose=None,
        streamed=None,
        held_upt=0,
        charged_upt=0,
        shortfall_upt=0,
        missing_upt=0,
        input_tokens=0,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        basis=None,
        channel=None,
        upstream_model=None,
        status=None,
        error=None,
        reason=None,
        attempts=0,
        swept=False,
        started_us=row.at_us,
        ended_us=None,
        duration_ms=None,
        first_token_ms=None,
        version=row.version,
    )


def _terms(request: RequestRow, terms: Terms, plan: PlanUse | None) -> None:
    request.group_name, request.multiplier_ppm = terms.group, terms.multiplier_ppm
    if plan is not None:
        request.plan_level, request.plan_version = plan.plan.level, plan.plan.version
        request.plan_item = plan.item


def _consumed(request: RequestRow, usage: Usage, basis: str) -> None:
    request.input_tokens = usage.input
    request.cached_tokens = usage.cached_input
    request.cache_write_tokens = usage.cache_write
    request.output_tokens = usage.output
    request.reasoning_tokens = usage.reasoning
    request.cache_write_1h_tokens = usage.cache_write_1h
    request.images, request.seconds = usage.images, usage.seconds
    request.characters, request.searches = usage.characters, usage.searches
    request.basis = basis


def _served(request: RequestRow, served: Served) -> None:
    request.channel = served.channel
    request.upstream_model = served.upstream_model
    request.status = served.status
    request.error = served.error
    request.attempts = served.attempts
    request.duration_ms = served.duration_ms
    request.first_token_ms = served.first_token_ms
