"""Decisions about points: pure functions from an account and a command to events or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.journal.commands import (
    Accept,
    Decision,
    LeaseClose,
    LeaseOpen,
    LeaseSweep,
    Refuse,
)
from backend.ledger.account import HOUR_US, REFUSALS_PER_HOUR, Account
from schemas.ids import ChannelId, KeyId, PersonId, RequestId
from schemas.ledger import (
    AccountOpened,
    GrantKind,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsGranted,
    PointsHeld,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from schemas.prices import Free, PerCall, PerToken, Price, PriceRef, cost_of, minimum_upt
from schemas.usage import Basis, Usage

OUTPUT_HELD_MAX: Final = 4_096
"""Output tokens held for one choice at the start; a longer answer extends its hold in steps."""


class MissingPoints(msgspec.Struct, frozen=True):
    """Available is below the minimum by this much."""

    missing_upt: MicroPoints


class NoSuchAccount(msgspec.Struct, frozen=True):
    pass


class NoSuchHold(msgspec.Struct, frozen=True):
    """The request has an outcome already, or was never let in."""


class AlreadyOpen(msgspec.Struct, frozen=True):
    pass


class TooMuch(msgspec.Struct, frozen=True):
    """The amount is not one that can be granted."""


class HoldAsked(msgspec.Struct, frozen=True):
    """What admission needs to know of a request. Bounds in tokens, all choices together."""

    request_id: RequestId
    purpose: str
    key: KeyId
    model: str
    price: Price
    price_ref: PriceRef
    streamed: bool
    input_bound: int
    output_limit: int | None
    """The client's own limit for one choice, or None."""
    choices: int
    channels: tuple[ChannelId, ...]
    lease_s: int


def decide_open(state: Account, version: int, person: PersonId) -> Decision:
    """Opens an account, once."""
    if version > 0:
        return Refuse(AlreadyOpen())
    return Accept(((0, AccountOpened(person)),))


def decide_grant(
    state: Account, version: int, amount_upt: MicroPoints, kind: GrantKind, actor: str
) -> Decision:
    """Adds points to an open account; amount > 0 and within what a balance may hold."""
    if version == 0:
        return Refuse(NoSuchAccount())
    if not 0 < amount_upt <= AMOUNT_UPT_MAX or state.issued_upt + amount_upt > AMOUNT_UPT_MAX:
        return Refuse(TooMuch())
    return Accept(((0, PointsGranted(amount_upt, kind, actor)),))


def hold_bound_upt(price: Price, input_bound: int, output_bound: int) -> MicroPoints:
    """Upper bound of a request's cost: everything uncached, every output token used."""
    match price:
        case PerToken():
            return cost_of(_dearest(price), Usage(input=input_bound, output=output_bound))
        case Free() | PerCall():
            return cost_of(price, Usage())


def affordable_output(price: Price, available_upt: int, input_bound: int) -> int | None:
    """Output tokens that `available_upt` still pays for after the input; None: any number."""
    match price:
        case PerToken(output_npt=output_npt) if output_npt > 0:
            dearest = _dearest(price)
            left_npt = available_upt * 1_000 - input_bound * dearest.input_npt
            return max(0, left_npt // output_npt)
        case _:
            return None


def decide_hold(state: Account, version: int, asked: HoldAsked, at_us: int) -> Decision:
    """Lets a request in and sets aside its upper bound, or what is available if that is less.

    Refused (MissingPoints) below the minimum; recorded as RequestRefused, up to a cap per hour.
    """
    if version == 0:
        return Refuse(NoSuchAccount())
    missing_upt = minimum_upt(asked.price) - state.available_upt
    if missing_upt > 0:
        return _refusal(state, asked, MicroPoints(missing_upt), at_us)
    per_choice = min(asked.output_limit or OUTPUT_HELD_MAX, OUTPUT_HELD_MAX)
    output_bound = per_choice * asked.choices
    wanted_upt = hold_bound_upt(asked.price, asked.input_bound, output_bound)
    amount_upt = MicroPoints(min(wanted_upt, state.available_upt))
    held = PointsHeld(
        request_id=asked.request_id,
        amount_upt=amount_upt,
        purpose=asked.purpose,
        key=asked.key,
        model=asked.model,
        price=asked.price_ref,
        streamed=asked.streamed,
        input_bound=asked.input_bound,
        output_bound=output_bound,
        channels=asked.channels,
    )
    return Accept(((0, held),), (LeaseOpen(asked.request_id, asked.lease_s),))


def decide_extend(state: Account, request_id: RequestId, wanted_upt: int) -> Decision:
    """Holds up to `wanted_upt` more for an answer that is longer than was held for."""
    if request_id not in state.holds:
        return Refuse(NoSuchHold())
    amount_upt = min(wanted_upt, state.available_upt)
    if amount_upt <= 0:
        return Refuse(MissingPoints(MicroPoints(wanted_upt)))
    return Accept(((0, HoldExtended(request_id, MicroPoints(amount_upt))),))


class SettleAsked(msgspec.Struct, frozen=True):
    """What was consumed, on which basis and at which price version."""

    request_id: RequestId
    usage: Usage
    basis: Basis
    price: Price
    price_ref: PriceRef
    served: Served


def decide_settle(state: Account, asked: SettleAsked, sweep: LeaseSweep | None = None) -> Decision:
    """Ends a hold with its exact cost.

    A cost above the hold first takes what is available (HoldExtended); what then remains possible
    is a ShortfallRecorded, uncharged. I3, I4: one outcome, charged ≤ held.
    """
    hold = state.holds.get(asked.request_id)
    if hold is None:
        return Refuse(NoSuchHold())
    due_upt = cost_of(asked.price, asked.usage)
    more_upt = min(max(0, due_upt - hold.amount_upt), state.available_upt)
    charged_upt = min(due_upt, hold.amount_upt + more_upt)
    events: list[Any] = []
    if more_upt > 0:
        events.append(HoldExtended(asked.request_id, MicroPoints(more_upt)))
    events.append(
        HoldSettled(
            request_id=asked.request_id,
            amount_upt=MicroPoints(charged_upt),
            usage=asked.usage,
            basis=asked.basis,
            price=asked.price_ref,
            served=asked.served,
            swept=sweep is not None,
        )
    )
    if due_upt > charged_upt:
        events.append(ShortfallRecorded(asked.request_id, MicroPoints(due_upt - charged_upt)))
    return Accept(_at_home(events), (sweep or LeaseClose(asked.request_id),))


def decide_release(
    state: Account,
    request_id: RequestId,
    reason: ReleaseReason,
    served: Served,
    sweep: LeaseSweep | None = None,
) -> Decision:
    """Ends a hold without a charge."""
    if request_id not in state.holds:
        return Refuse(NoSuchHold())
    event = HoldReleased(request_id, reason, served)
    return Accept(((0, event),), (sweep or LeaseClose(request_id),))


def decide_late(
    state: Account,
    version: int,
    asked: SettleAsked,
    sweep_event_id: UUID,
    accounted_upt: int,
) -> Decision:
    """Records real usage that came after a sweep, charging what is available of the difference.

    `accounted_upt` is what the sweep charged and what it recorded as fallen short.
    """
    if version == 0:
        return Refuse(NoSuchAccount())
    due_upt = max(0, cost_of(asked.price, asked.usage) - accounted_upt)
    charged_upt = min(due_upt, state.available_upt)
    event = UsageLate(
        request_id=asked.request_id,
        sweep_event_id=sweep_event_id,
        amount_upt=MicroPoints(charged_upt),
        shortfall_upt=MicroPoints(due_upt - charged_upt),
        usage=asked.usage,
        basis=asked.basis,
        price=asked.price_ref,
        served=asked.served,
    )
    return Accept(((0, event),))


def _refusal(state: Account, asked: HoldAsked, missing_upt: MicroPoints, at_us: int) -> Decision:
    in_this_hour = state.refusals if state.refusals_hour == at_us // HOUR_US else 0
    if in_this_hour >= REFUSALS_PER_HOUR:
        return Refuse(MissingPoints(missing_upt))
    event = RequestRefused(
        request_id=asked.request_id,
        reason=RefusalReason.INSUFFICIENT_POINTS,
        key=asked.key,
        model=asked.model,
        price=asked.price_ref,
        missing_upt=missing_upt,
    )
    return Accept(((0, event),))


def _dearest(price: PerToken) -> PerToken:
    cached_npt = price.input_npt if price.cached_input_npt is None else price.cached_input_npt
    return PerToken(max(price.input_npt, cached_npt), price.output_npt, cached_npt)


def _at_home(events: Sequence[Any]) -> tuple[tuple[int, Any], ...]:
    return tuple((0, event) for event in events)
