"""What is asked for of statements, requests, usage and the log: text from outside, made sure of.

Pure. Who may see which account is decided by whoever calls.
"""

from __future__ import annotations

import re
from typing import Annotated, Final
from uuid import UUID

import msgspec

from backend.kit.time_text import parse_time
from schemas.errors import BadRequest
from schemas.money import AMOUNT_UPT_MAX, MoneyError, parse_points

ALWAYS_US: Final = 2**62
"""An end of time beyond any event."""
NEWEST_VERSION: Final = 2**63 - 1
LAST_REQUEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
FIRST_REQUEST: Final = "00000000-0000-0000-0000-000000000000"
LIMIT_MAX: Final = 1_000
KINDS: Final = (
    "grant", "gift", "invitation", "plan_buy", "plan_renew", "plan_change", "settle", "correct",
    "late",
)  # fmt: skip
OUTCOMES: Final = ("open", "settled", "released", "refused", "late")
BASES: Final = ("reported", "counted", "none")
DIRECTIONS: Final = {"in": 1, "out": -1}
_WORD: Final = re.compile(r"[A-Za-z]{1,64}")
_ID_MAX: Final = 2**63 - 1
_OF_BOTH: Final = ("key", "model", "channel", "request_id", "basis", "at_least", "at_most")

Id = Annotated[int, msgspec.Meta(ge=0, le=_ID_MAX)]


class RecordQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to look for, as a person writes it; what is not given does not limit.

    `since` ≤ time < `until`, ISO 8601. `kind`, `outcome` and `type`: one or several, with commas.
    `at_least`, `at_most`: points without a sign. `direction`: `in` or `out`.
    """

    since: str | None = None
    until: str | None = None
    kind: str | None = None
    outcome: str | None = None
    type: str | None = None
    key: Id | None = None
    model: str | None = None
    channel: Id | None = None
    request_id: str | None = None
    basis: str | None = None
    at_least: str | None = None
    at_most: str | None = None
    direction: str | None = None


class StatementFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Movements. `account` None: of everybody; amounts are absolute, `sign` 1: in, -1: out."""

    account: str | None = None
    since_us: int = 0
    until_us: int = ALWAYS_US
    kinds: list[str] | None = None
    key: int | None = None
    model: str | None = None
    channel: int | None = None
    request_id: str | None = None
    basis: str | None = None
    least_upt: int | None = None
    most_upt: int | None = None
    sign: int = 0


class RequestFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Requests by the time they began; amounts are what was charged."""

    account: str | None = None
    since_us: int = 0
    until_us: int = ALWAYS_US
    outcomes: list[str] | None = None
    key: int | None = None
    model: str | None = None
    channel: int | None = None
    request_id: str | None = None
    basis: str | None = None
    least_upt: int | None = None
    most_upt: int | None = None


class UsageFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Usage in the whole hours that touch [`since_us`, `until_us`)."""

    account: str | None = None
    since_us: int = 0
    until_us: int = ALWAYS_US
    key: int | None = None
    model: str | None = None
    channel: int | None = None


class EntryFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events of the ledger. `stream` None: of all its streams."""

    stream: str | None = None
    since_us: int = 0
    until_us: int = ALWAYS_US
    types: list[str] | None = None


def statement_filter(query: RecordQuery, account: str | None) -> StatementFilter:
    """Raises BadRequest, which names what is wrong."""
    _only(query, {*_OF_BOTH, "kind", "direction"})
    since_us, until_us = _times(query)
    least_upt, most_upt = _amounts(query)
    if query.direction is not None and query.direction not in DIRECTIONS:
        raise BadRequest("`direction` is `in` or `out`.")
    return StatementFilter(
        account=account,
        since_us=since_us,
        until_us=until_us,
        kinds=_among("kind", query.kind, KINDS),
        key=query.key,
        model=_model(query),
        channel=query.channel,
        request_id=_request(query),
        basis=_basis(query),
        least_upt=least_upt,
        most_upt=most_upt,
        sign=0 if query.direction is None else DIRECTIONS[query.direction],
    )


def request_filter(query: RecordQuery, account: str | None) -> RequestFilter:
    """Raises BadRequest, which names what is wrong."""
    _only(query, {*_OF_BOTH, "outcome"})
    since_us, until_us = _times(query)
    least_upt, most_upt = _amounts(query)
    return RequestFilter(
        account=account,
        since_us=since_us,
        until_us=until_us,
        outcomes=_among("outcome", query.outcome, OUTCOMES),
        key=query.key,
        model=_model(query),
        channel=query.channel,
        request_id=_request(query),
        basis=_basis(query),
        least_upt=least_upt,
        most_upt=most_upt,
    )


def usage_filter(query: RecordQuery, account: str | None) -> UsageFilter:
    """Raises BadRequest, which names what is wrong."""
    _only(query, {"key", "model", "channel"})
    since_us, until_us = _times(query)
    return UsageFilter(account, since_us, until_us, query.key, _model(query), query.channel)


def entry_filter(query: RecordQuery, stream: str | None) -> EntryFilter:
    """Raises BadRequest, which names what is wrong."""
    _only(query, {"type"})
    since_us, until_us = _times(query)
    types = None if query.type is None else query.type.split(",")
    if types is not None and not all(_WORD.fullmatch(name) for name in types):
        raise BadRequest("`type` is the name of an event, such as HoldSettled.")
    return EntryFilter(stream, since_us, until_us, types)


def uuid_text(name: str, text: str) -> str:
    """The plain form of a UUID. Raises BadRequest."""
    try:
        return str(UUID(text))
    except ValueError as error:
        raise BadRequest(f"`{name}` is no id: {text[:40]!r}.") from error


def limit_of(limit: int) -> int:
    """Raises BadRequest."""
    if not 1 <= limit <= LIMIT_MAX:
        raise BadRequest(f"`limit` is from 1 to {LIMIT_MAX}.")
    return limit


def _only(query: RecordQuery, known: set[str]) -> None:
    """Refuses what this list does not know, and numbers that no id can be."""
    for name, value in (("key", query.key), ("channel", query.channel)):
        if value is not None and not 0 <= value <= _ID_MAX:
            raise BadRequest(f"`{name}` is a number as it is shown.")
    for name in query.__struct_fields__:
        if name in {"since", "until"} | known or getattr(query, name) is None:
            continue
        raise BadRequest(f"`{name}` is not looked for here.")


def _times(query: RecordQuery) -> tuple[int, int]:
    since_us = 0 if query.since is None else parse_time(query.since)
    until_us = ALWAYS_US if query.until is None else parse_time(query.until)
    if since_us >= until_us:
        raise BadRequest("`since` is before `until`.")
    return since_us, until_us


def _amounts(query: RecordQuery) -> tuple[int | None, int | None]:
    least_upt = None if query.at_least is None else _amount("at_least", query.at_least)
    most_upt = None if query.at_most is None else _amount("at_most", query.at_most)
    if least_upt is not None and most_upt is not None and least_upt > most_upt:
        raise BadRequest("`at_least` is not more than `at_most`.")
    return least_upt, most_upt


def _amount(name: str, text: str) -> int:
    try:
        amount_upt = parse_points(text)
    except MoneyError as error:
        raise BadRequest(f"`{name}`: {error}.") from error
    if not 0 <= amount_upt <= AMOUNT_UPT_MAX:
        raise BadRequest(f"`{name}` is not negative: `direction` says which way points went.")
    return amount_upt


def _among(name: str, text: str | None, known: tuple[str, ...]) -> list[str] | None:
    if text is None:
        return None
    chosen = text.split(",")
    if not set(chosen) <= set(known):
        raise BadRequest(f"`{name}` is one of {', '.join(known)}.")
    return chosen


def _basis(query: RecordQuery) -> str | None:
    if query.basis is not None and query.basis not in BASES:
        raise BadRequest(f"`basis` is one of {', '.join(BASES)}.")
    return query.basis


def _model(query: RecordQuery) -> str | None:
    if query.model is not None and "\x00" in query.model:
        raise BadRequest("`model` is no name of a model.")
    return query.model


def _request(query: RecordQuery) -> str | None:
    return None if query.request_id is None else uuid_text("request_id", query.request_id)
