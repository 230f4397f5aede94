"""Records as people and programs get them: one shape for the API, for JSONL and for CSV. Pure.

Amounts are decimal strings of points, times ISO 8601 in UTC with microseconds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.kit.time_text import iso_text, iso_text_or_none
from backend.ledger.request_log import RequestEntry
from backend.ledger.statements import StatementEntry
from schemas.event import LEDGER, Recorded
from schemas.money import format_points
from schemas.prices import PPM

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet runs text that begins so."""
_ENCODER: Final = msgspec.json.Encoder()


class Movement(msgspec.Struct, frozen=True):
    """A line of a statement. `balance` is what was posted after it; `source` the stream that
    granted points come from; `credit` is what a change of plan gave back, within the amount.
    """

    account: str
    version: int
    at: str
    kind: str
    amount: str
    balance: str
    request_id: str | None
    key: int | None
    model: str | None
    channel: int | None
    price_model: str | None
    price_version: int | None
    basis: str | None
    swept: bool
    grant_kind: str | None
    source: str | None
    gift_type: str | None
    plan_level: int | None
    plan_version: int | None
    plan_months: int | None
    credit: str | None
    actor: str | None
    explains_event_id: UUID | None
    event_id: UUID
    command_id: UUID
    topic: str
    partition: int


class RequestLine(msgspec.Struct, frozen=True):
    """A request of the usage log. `points` is what it was charged, `missing` what a refused one
    lacked; with `plan_item` a plan paid. `multiplier` is its group's.
    """

    request_id: str
    account: str
    outcome: str
    started: str
    ended: str | None
    key: int
    model: str
    upstream_model: str | None
    channel: int | None
    purpose: str | None
    streamed: bool | None
    points: str
    held: str
    shortfall: str
    missing: str
    price_model: str
    price_version: int
    group: str
    multiplier: str
    plan_level: int | None
    plan_version: int | None
    plan_item: str | None
    basis: str | None
    swept: bool
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    images: int
    seconds: int
    characters: int
    searches: int
    status: int | None
    error: str | None
    reason: str | None
    attempts: int
    duration_ms: int | None
    first_token_ms: int | None


class LedgerLine(msgspec.Struct, frozen=True):
    """An event as it was recorded, with its place in the log and its chain. Hashes in hex."""

    stream: str
    version: int
    type: str
    schema: int
    at: str
    event_id: UUID
    command_id: UUID
    topic: str
    partition: int
    prev_hash: str
    hash: str
    payload: dict[str, Any]


def ledger_line_of(row: Recorded) -> LedgerLine:
    """Raises msgspec.DecodeError for a payload that is no object."""
    return LedgerLine(
        stream=row.stream,
        version=row.version,
        type=row.type,
        schema=row.schema,
        at=iso_text(row.at_us),
        event_id=row.event_id,
        command_id=row.command_id,
        topic=row.topic,
        partition=row.shard,
        prev_hash=row.prev_hash.hex(),
        hash=row.hash.hex(),
        payload=msgspec.json.decode(row.payload, type=dict[str, Any]),
    )


def movement_of(entry: StatementEntry) -> Movement:
    return Movement(
        account=entry.account,
        version=entry.version,
        at=iso_text(entry.at_us),
        kind=entry.kind,
        amount=format_points(entry.amount_upt),
        balance=format_points(entry.balance_upt),
        request_id=entry.request_id,
        key=entry.key,
        model=entry.model,
        channel=entry.channel,
        price_model=entry.price_model,
        price_version=entry.price_version,
        basis=entry.basis,
        swept=entry.swept,
        grant_kind=entry.grant_kind,
        source=entry.source,
        gift_type=entry.gift_type,
        plan_level=entry.plan_level,
        plan_version=entry.plan_version,
        plan_months=entry.plan_months,
        credit=None if entry.credit_upt is None else format_points(entry.credit_upt),
        actor=entry.actor,
        explains_event_id=entry.explains_event_id,
        event_id=entry.event_id,
        command_id=entry.command_id,
        topic=LEDGER,
        partition=entry.shard,
    )


def request_line_of(entry: RequestEntry) -> RequestLine:
    return RequestLine(
        request_id=entry.request_id,
        account=entry.account,
        outcome=entry.outcome,
        started=iso_text(entry.started_us),
        ended=iso_text_or_none(entry.ended_us),
        key=entry.key,
        model=entry.model,
        upstream_model=entry.upstream_model,
        channel=entry.channel,
        purpose=entry.purpose,
        streamed=entry.streamed,
        points=format_points(entry.charged_upt),
        held=format_points(entry.held_upt),
        shortfall=format_points(entry.shortfall_upt),
        missing=format_points(entry.missing_upt),
        price_model=entry.price_model,
        price_version=entry.price_version,
        group=entry.group,
        multiplier=_factor(entry.multiplier_ppm),
        plan_level=entry.plan_level,
        plan_version=entry.plan_version,
        plan_item=entry.plan_item,
        basis=entry.basis,
        swept=entry.swept,
        input_tokens=entry.input_tokens,
        cached_tokens=entry.cached_tokens,
        cache_write_tokens=entry.cache_write_tokens,
        cache_write_1h_tokens=entry.cache_write_1h_tokens,
        output_tokens=entry.output_tokens,
        reasoning_tokens=entry.reasoning_tokens,
        images=entry.images,
        seconds=entry.seconds,
        characters=entry.characters,
        searches=entry.searches,
        status=entry.status,
        error=entry.error,
        reason=entry.reason,
        attempts=entry.attempts,
        duration_ms=entry.duration_ms,
        first_token_ms=entry.first_token_ms,
    )


AMOUNTS: Final = frozenset(
    {"amount", "balance", "credit", "points", "held", "shortfall", "missing", "multiplier"}
)
"""Fields whose text is a number: it stays one, a minus in front or not."""


def csv_header(line: type[msgspec.Struct]) -> bytes:
    return _csv([line.__struct_fields__])


def csv_lines(lines: Iterable[msgspec.Struct]) -> bytes:
    """Lines of RFC 4180, UTF-8. Text that a spreadsheet would run gets an apostrophe in front."""
    return _csv(
        [_cell(name, getattr(line, name)) for name in line.__struct_fields__] for line in lines
    )


def json_lines(lines: Iterable[msgspec.Struct]) -> bytes:
    return _ENCODER.encode_lines(list(lines))


def _csv(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _cell(name: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            is_formula = name not in AMOUNTS and value.startswith(FORMULA_STARTS)
            return f"'{value}" if is_formula else value
        case dict():
            return _ENCODER.encode(value).decode()
        case _:
            return str(value)


def _factor(ppm: int) -> str:
    """A factor as a plain decimal: 1,500,000 parts per million are `1.5`."""
    assert PPM == 10**6, "points have as many decimals"
    return format_points(ppm)
