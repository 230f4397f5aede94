"""What each event adds to which hour. Pure; an event that cannot follow raises ValueError.

A request counts in the hour of its outcome. Late usage replaces the counts where they were made;
its charge counts in the hour it was charged in, as in the statement.
"""

from __future__ import annotations

from typing import Final

import msgspec

from backend.journal.consumer import PoisonEvent
from backend.ledger.account import HOUR_US
from schemas.event import Recorded
from schemas.ledger import (
    HoldReleased,
    HoldSettled,
    PointsHeld,
    ReleaseReason,
    RequestRefused,
    Served,
    UsageLate,
)
from schemas.usage import Usage

NO_CHANNEL: Final = 0

WaitingKey = tuple[str, str]
"""(stream, request id)."""


class Bucket(msgspec.Struct, frozen=True, gc=False):
    stream: str
    hour: int
    model: str
    channel: int
    key: int


class Counts(msgspec.Struct, frozen=True, gc=False):
    """What one request adds to a bucket. `input_tokens` includes `cache_write_tokens`."""

    requests: int = 0
    errors: int = 0
    refused: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    charged_upt: int = 0
    duration_ms: int = 0
    plan_requests: int = 0
    cache_write_tokens: int = 0


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A row of `usage_waiting`; the counts are zero until a sweep ended the request."""

    stream: str
    request_id: str
    key: int
    model: str
    swept: bool = False
    hour: int = 0
    channel: int = NO_CHANNEL
    errors: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    charged_upt: int = 0
    duration_ms: int = 0
    plan_requests: int = 0
    cache_write_tokens: int = 0


class Totals(msgspec.Struct, gc=False):
    """A running sum of counts; what a batch adds to one row of `usage`."""

    stream: str
    hour: int
    model: str
    channel: int
    key: int
    requests: int = 0
    errors: int = 0
    refused: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    charged_upt: int = 0
    duration_ms: int = 0
    plan_requests: int = 0
    cache_write_tokens: int = 0


class UsageRows:
    """What a batch adds, and the requests that wait after it."""

    def __init__(self, stored: dict[WaitingKey, Waiting]) -> None:
        self._stored: Final = stored
        self._waiting: Final = dict(stored)
        self._totals: Final[dict[tuple[str, int, str, int, int], Totals]] = {}

    def totals(self) -> list[Totals]:
        return list(self._totals.values())

    def now_waiting(self) -> list[Waiting]:
        """Rows to write: new ones and changed ones."""
        return [row for key, row in self._waiting.items() if self._stored.get(key) is not row]

    def gone(self) -> list[WaitingKey]:
        """Rows that the table has and that wait no longer."""
        return [key for key in self._stored if key not in self._waiting]

    def wait(self, waiting: Waiting) -> None:
        self._waiting[(waiting.stream, waiting.request_id)] = waiting

    def begin(self, waiting: Waiting) -> None:
        if (waiting.stream, waiting.request_id) in self._waiting:
            raise PoisonEvent(f"I3: {waiting.request_id} has begun already")
        self.wait(waiting)

    def end(self, row: Recorded, request_id: str, *, swept: bool) -> Waiting:
        """Takes out the request that the event of `row` ends, in the state it must be in."""
        found = self._waiting.get((row.stream, request_id))
        if found is None or found.swept is not swept:
            raise PoisonEvent(f"I3: {request_id} is not one that {row.type} can follow")
        del self._waiting[(row.stream, request_id)]
        return found

    def add(self, bucket: Bucket, counts: Counts) -> None:
        self._add(bucket, counts, 1)

    def take_back(self, bucket: Bucket, counts: Counts) -> None:
        self._add(bucket, counts, -1)

    def _add(self, bucket: Bucket, counts: Counts, sign: int) -> None:
        key = (bucket.stream, bucket.hour, bucket.model, bucket.channel, bucket.key)
        total = self._totals.get(key)
        if total is None:
            total = self._totals[key] = Totals(*key)
        total.requests += sign * counts.requests
        total.errors += sign * counts.errors
        total.refused += sign * counts.refused
        total.input_tokens += sign * counts.input_tokens
        total.cached_tokens += sign * counts.cached_tokens
        total.output_tokens += sign * counts.output_tokens
        total.charged_upt += sign * counts.charged_upt
        total.duration_ms += sign * counts.duration_ms
        total.plan_requests += sign * counts.plan_requests
        total.cache_write_tokens += sign * counts.cache_write_tokens


def held(rows: UsageRows, row: Recorded, event: PointsHeld) -> None:
    rows.begin(Waiting(row.stream, event.request_id, event.key, event.model))


def settled(rows: UsageRows, row: Recorded, event: HoldSettled) -> None:
    waiting = rows.end(row, event.request_id, swept=False)
    failed = event.served.error is not None
    by_plan = event.plan is not None
    counts = _counted(event.usage, event.served, event.amount_upt, failed, by_plan=by_plan)
    _ended(rows, row, waiting, event.served, counts, swept=event.swept)


def released(rows: UsageRows, row: Recorded, event: HoldReleased) -> None:
    waiting = rows.end(row, event.request_id, swept=False)
    failed = event.reason is not ReleaseReason.CLIENT_LEFT
    counts = _counted(Usage(), event.served, 0, failed, by_plan=False)
    swept = event.reason is ReleaseReason.SWEPT
    _ended(rows, row, waiting, event.served, counts, swept=swept)


def late(rows: UsageRows, row: Recorded, event: UsageLate) -> None:
    before = rows.end(row, event.request_id, swept=True)
    failed = event.served.error is not None
    by_plan = event.plan is not None
    counts = _counted(event.usage, event.served, before.charged_upt, failed, by_plan=by_plan)
    rows.take_back(_bucket(before, before.hour, before.channel), _counts_of(before))
    channel = _channel(event.served)
    rows.add(_bucket(before, before.hour, channel), counts)
    if event.amount_upt:
        charge = Counts(charged_upt=event.amount_upt)
        rows.add(_bucket(before, _hour(row), channel), charge)


def refused(rows: UsageRows, row: Recorded, event: RequestRefused) -> None:
    bucket = Bucket(row.stream, _hour(row), event.model, NO_CHANNEL, event.key)
    rows.add(bucket, Counts(requests=1, refused=1))


def _ended(
    rows: UsageRows,
    row: Recorded,
    waiting: Waiting,
    served: Served,
    counts: Counts,
    *,
    swept: bool,
) -> None:
    hour, channel = _hour(row), _channel(served)
    rows.add(_bucket(waiting, hour, channel), counts)
    if swept:
        rows.wait(
            Waiting(
                waiting.stream,
                waiting.request_id,
                waiting.key,
                waiting.model,
                swept=True,
                hour=hour,
                channel=channel,
                errors=counts.errors,
                input_tokens=counts.input_tokens,
                cached_tokens=counts.cached_tokens,
                output_tokens=counts.output_tokens,
                charged_upt=counts.charged_upt,
                duration_ms=counts.duration_ms,
                plan_requests=counts.plan_requests,
                cache_write_tokens=counts.cache_write_tokens,
            )
        )


def _counted(
    usage: Usage, served: Served, charged_upt: int, failed: bool, *, by_plan: bool
) -> Counts:
    written = usage.cache_write + usage.cache_write_1h
    return Counts(
        requests=1,
        errors=1 if failed else 0,
        input_tokens=usage.input + written,
        cached_tokens=usage.cached_input,
        output_tokens=usage.output,
        charged_upt=charged_upt,
        duration_ms=served.duration_ms,
        plan_requests=1 if by_plan else 0,
        cache_write_tokens=written,
    )


def _counts_of(waiting: Waiting) -> Counts:
    return Counts(
        requests=1,
        errors=waiting.errors,
        input_tokens=waiting.input_tokens,
        cached_tokens=waiting.cached_tokens,
        output_tokens=waiting.output_tokens,
        charged_upt=waiting.charged_upt,
        duration_ms=waiting.duration_ms,
        plan_requests=waiting.plan_requests,
        cache_write_tokens=waiting.cache_write_tokens,
    )


def _bucket(waiting: Waiting, hour: int, channel: int) -> Bucket:
    return Bucket(waiting.stream, hour, waiting.model, channel, waiting.key)


def _hour(row: Recorded) -> int:
    return row.at_us // HOUR_US


def _channel(served: Served) -> int:
    return NO_CHANNEL if served.channel is None else served.channel
