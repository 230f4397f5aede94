"""The fold of an `account:` stream: what every decision about points is based on. Pure.

I1: every movement has two legs; the second (issuer, revenue, held) is derived here from the totals.
I2: `available_upt` is never negative after any event; `apply` refuses a history that would make it
so.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import msgspec

from backend.journal.fold import Fold
from schemas.ledger import (
    AccountOpened,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    LedgerEvent,
    PointsCorrected,
    PointsGranted,
    PointsHeld,
    RequestRefused,
    ShortfallRecorded,
    UsageLate,
)

REFUSALS_PER_HOUR: Final = 60
"""Recorded refusals per account and hour; more are answered but only counted as a metric."""
HOUR_US: Final = 3_600_000_000


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """Points set aside for one request that has no outcome yet."""

    amount_upt: int
    model: str
    price_version: int
    input_bound: int
    since_us: int


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """Totals in micro-points since the account was opened, and the open holds by request id."""

    person: int = 0
    issued_upt: int = 0
    """Granted and corrected: the issuer's leg."""
    charged_upt: int = 0
    """Settled and late: the revenue's leg."""
    held_upt: int = 0
    shortfall_upt: int = 0
    holds: dict[str, Hold] = {}
    refusals_hour: int = 0
    refusals: int = 0

    @property
    def posted_upt(self) -> int:
        return self.issued_upt - self.charged_upt

    @property
    def available_upt(self) -> int:
        return self.issued_upt - self.charged_upt - self.held_upt


class ImpossibleHistory(ValueError):
    """An event that cannot follow the state: the stream's bytes are not what was decided."""


def apply(state: Account, event: LedgerEvent, version: int, at_us: int) -> Account:
    """The account after one more event. Raises ImpossibleHistory where an invariant would break."""
    if (version == 1) is not isinstance(event, AccountOpened):
        raise ImpossibleHistory("an account is opened once, first")
    after = _apply(state, event, version, at_us)
    if after.available_upt < 0 or after.held_upt < 0 or after.posted_upt < 0:
        raise ImpossibleHistory(f"I2: {type(event).__name__} makes the balance negative")
    return after


def _apply(state: Account, event: LedgerEvent, version: int, at_us: int) -> Account:
    match event:
        case PointsHeld():
            return _held(state, event, at_us)
        case HoldSettled():
            return _ended(state, event.request_id, event.amount_upt)
        case HoldReleased():
            return _ended(state, event.request_id, 0)
        case HoldExtended():
            return _extended(state, event)
        case PointsGranted():
            return _with(state, issued_upt=state.issued_upt + _counted(event.amount_upt))
        case PointsCorrected():
            return _with(state, issued_upt=state.issued_upt + event.amount_upt)
        case UsageLate():
            return _with(
                state,
                charged_upt=state.charged_upt + _counted(event.amount_upt),
                shortfall_upt=state.shortfall_upt + _counted(event.shortfall_upt),
            )
        case ShortfallRecorded():
            return _with(state, shortfall_upt=state.shortfall_upt + _counted(event.amount_upt))
        case RequestRefused():
            hour = at_us // HOUR_US
            same_hour = hour == state.refusals_hour
            return _with(state, refusals_hour=hour, refusals=state.refusals + 1 if same_hour else 1)
        case AccountOpened():
            return _with(state, person=event.person)
        case _:
            assert_never(event)


def _held(state: Account, event: PointsHeld, at_us: int) -> Account:
    if event.request_id in state.holds:
        raise ImpossibleHistory(f"I3: {event.request_id} is held twice")
    hold = Hold(
        _counted(event.amount_upt), event.model, event.price.version, event.input_bound, at_us
    )
    return _with(
        state,
        held_upt=state.held_upt + event.amount_upt,
        holds={**state.holds, event.request_id: hold},
    )


def _extended(state: Account, event: HoldExtended) -> Account:
    hold = _hold_of(state, event.request_id)
    wider = msgspec.structs.replace(hold, amount_upt=hold.amount_upt + _counted(event.amount_upt))
    return _with(
        state,
        held_upt=state.held_upt + event.amount_upt,
        holds={**state.holds, event.request_id: wider},
    )


def _ended(state: Account, request_id: str, charged_upt: int) -> Account:
    hold = _hold_of(state, request_id)
    if not 0 <= charged_upt <= hold.amount_upt:
        raise ImpossibleHistory(f"I4: {request_id} is charged more than was held")
    holds = dict(state.holds)
    del holds[request_id]
    return _with(
        state,
        charged_upt=state.charged_upt + charged_upt,
        held_upt=state.held_upt - hold.amount_upt,
        holds=holds,
    )


def _hold_of(state: Account, request_id: str) -> Hold:
    hold = state.holds.get(request_id)
    if hold is None:
        raise ImpossibleHistory(f"I3: {request_id} has no open hold")
    return hold


def _counted(amount_upt: int) -> int:
    """An amount that only ever adds: a negative one would move points the other way."""
    if amount_upt < 0:
        raise ImpossibleHistory("I4: an amount is not negative")
    return amount_upt


def _with(state: Account, **changes: Any) -> Account:
    return msgspec.structs.replace(state, **changes)


ACCOUNT: Final = Fold("account", Account(), apply)
