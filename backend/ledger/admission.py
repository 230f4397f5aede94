"""Whether a request is let in, and who pays for it: a plan, else points. Pure.

One decision: the group, the limits that live in the account's state, the plan's call and the hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from backend.journal.commands import Accept, Decision, LeaseOpen, Refuse
from backend.ledger.account import HOUR_US, REFUSALS_PER_HOUR, Account
from backend.ledger.quota import period_begun_us, quota_period_us
from backend.ledger.refusals import (
    KeyQuotaReached,
    MissingPoints,
    NoSuchAccount,
    NotForGroup,
    TooManyAtOnce,
)
from backend.ledger.subscription import plan_use
from schemas.ids import ChannelId, RequestId
from schemas.ledger import RELAY_PURPOSES, PointsHeld, RefusalReason, RequestRefused
from schemas.money import MicroPoints
from schemas.plans import LEVEL_NAMES, NORMAL, OfferedGroup, OfferedPlan, PlanUse, Quota
from schemas.prices import Free, Price, PriceRef, Terms, bound_upt, minimum_upt
from schemas.relay import KeyTerms

OUTPUT_HELD_MAX: Final = 4_096
"""Output tokens held for one choice at the start; a longer answer extends its hold in steps."""
NO_PLANS: Final[Mapping[int, OfferedPlan]] = {}
NO_GROUPS: Final[Mapping[str, OfferedGroup]] = {}


class HoldAsked(msgspec.Struct, frozen=True):
    """What admission needs to know of a request. Bounds in tokens, all choices together."""

    request_id: RequestId
    purpose: str
    key: KeyTerms
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
    concurrency: int | None = None
    """Of the whole account; None: no limit."""
    plans: Mapping[int, OfferedPlan] = NO_PLANS
    groups: Mapping[str, OfferedGroup] = NO_GROUPS


def decide_hold(state: Account, version: int, asked: HoldAsked, at_us: int) -> Decision:
    """Lets a request in and sets aside a plan's call, or the upper bound of its cost, or what is
    available if that is less.

    Refused (MissingPoints, KeyQuotaReached) below the minimum; recorded as RequestRefused, up to a
    cap per hour.
    """
    if version == 0:
        return Refuse(NoSuchAccount())
    group = group_of(state, asked.key, at_us)
    offered = asked.groups.get(group)
    if offered is not None and offered.group.models and asked.model not in offered.group.models:
        return Refuse(NotForGroup(group))
    crowded = _crowded(state, asked)
    if crowded is not None:
        return Refuse(crowded)
    terms = Terms(at_us)
    if offered is not None:
        terms = Terms(at_us, group, offered.version, offered.group.multiplier_ppm)
    use = None
    if not isinstance(asked.price, Free):
        use = plan_use(
            state.subscription,
            asked.plans,
            asked.model,
            at_us,
            by_relay=asked.purpose.startswith(RELAY_PURPOSES),
        )
    if use is not None:
        return _accept(asked, MicroPoints(0), terms, use, None)
    return _held_in_points(state, asked, terms, at_us)


def group_of(state: Account, key: KeyTerms, at_us: int) -> str:
    """The key's own group, else the level of an active subscription, else `normal`."""
    if key.group:
        return key.group
    subscription = state.subscription
    if subscription is None or not subscription.active(at_us):
        return NORMAL
    return LEVEL_NAMES[subscription.level]


def _held_in_points(state: Account, asked: HoldAsked, terms: Terms, at_us: int) -> Decision:
    quota, reach_upt = None, state.available_upt
    if asked.key.quota_upt is not None:
        period_us = period_begun_us(
            quota_period_us(asked.key.reset, at_us), state.quota_period_us(asked.key.key), at_us
        )
        quota = Quota(MicroPoints(asked.key.quota_upt), period_us)
        reach_upt = max(0, min(reach_upt, state.quota_left_upt(asked.key.key, quota)))
    minimum = minimum_upt(asked.price, terms)
    if minimum > reach_upt:
        missing_upt = MicroPoints(minimum - state.available_upt)
        if missing_upt > 0:
            return _refusal(state, asked, MissingPoints(missing_upt), at_us)
        missing_upt = MicroPoints(minimum - reach_upt)
        return _refusal(state, asked, KeyQuotaReached(missing_upt, asked.key.reset), at_us)
    wanted_upt = bound_upt(asked.price, asked.input_bound, _output_bound(asked), terms)
    return _accept(asked, MicroPoints(min(wanted_upt, reach_upt)), terms, None, quota)


def _accept(
    asked: HoldAsked,
    amount_upt: MicroPoints,
    terms: Terms,
    plan: PlanUse | None,
    quota: Quota | None,
) -> Accept:
    held = PointsHeld(
        request_id=asked.request_id,
        amount_upt=amount_upt,
        purpose=asked.purpose,
        key=asked.key.key,
        model=asked.model,
        price=asked.price_ref,
        streamed=asked.streamed,
        input_bound=asked.input_bound,
        output_bound=_output_bound(asked),
        channels=asked.channels,
        terms=terms,
        plan=plan,
        quota=quota,
    )
    return Accept(((0, held),), (LeaseOpen(asked.request_id, asked.lease_s),))


def _output_bound(asked: HoldAsked) -> int:
    per_choice = min(asked.output_limit or OUTPUT_HELD_MAX, OUTPUT_HELD_MAX)
    return per_choice * asked.choices


def _crowded(state: Account, asked: HoldAsked) -> TooManyAtOnce | None:
    """Open holds are requests under way, in whichever process."""
    if asked.concurrency is not None and len(state.holds) >= asked.concurrency:
        return TooManyAtOnce("account", asked.concurrency)
    limit = asked.key.concurrency
    if limit is None:
        return None
    of_key = sum(1 for hold in state.holds.values() if hold.key == asked.key.key)
    return TooManyAtOnce("key", limit) if of_key >= limit else None


def _refusal(
    state: Account, asked: HoldAsked, why: MissingPoints | KeyQuotaReached, at_us: int
) -> Decision:
    in_this_hour = state.refusals if state.refusals_hour == at_us // HOUR_US else 0
    if in_this_hour >= REFUSALS_PER_HOUR:
        return Refuse(why)
    by_key = isinstance(why, KeyQuotaReached)
    event = RequestRefused(
        request_id=asked.request_id,
        reason=RefusalReason.KEY_QUOTA if by_key else RefusalReason.INSUFFICIENT_POINTS,
        key=asked.key.key,
        model=asked.model,
        price=asked.price_ref,
        missing_upt=why.missing_upt,
    )
    return Accept(((0, event),))
