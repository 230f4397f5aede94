"""The fold of an `account:` stream: what every decision about points is based on. Pure.

I1: every movement has two legs; the second (issuer, revenue, held) is derived here from the totals.
I2: `available_upt` is never negative after any event; `apply` refuses a history that would make it
so.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import msgspec

from backend.journal.fold import Fold
from backend.ledger.subscription import (
    Subscription,
    begun,
    changed,
    renewed,
    with_use,
    without_use,
)
from schemas.ledger import (
    AccountOpened,
    GiftTaken,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    InvitationRewarded,
    PlanBought,
    PlanChanged,
    PlanExpired,
    PlanRenewed,
    PointsCorrected,
    PointsGranted,
    PointsHeld,
    RequestRefused,
    ShortfallRecorded,
    UsageLate,
)
from schemas.plans import PlanUse, Quota
from schemas.prices import PLAIN_TERMS, Terms

REFUSALS_PER_HOUR: Final = 60
"""Recorded refusals per account and hour; more are answered but only counted as a metric."""
HOUR_US: Final = 3_600_000_000


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Points set aside for one request that has no outcome yet."""

    amount_upt: int
    model: str
    price_version: int
    input_bound: int
    since_us: int
    key: int = 0
    terms: Terms = PLAIN_TERMS
    plan: PlanUse | None = None
    """A subscription pays for it."""
    quota: Quota | None = None


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a key with a quota was charged in the period that began then."""

    period_us: int
    amount_upt: int


RequestEvent = (
    PointsHeld
    | HoldExtended
    | HoldSettled
    | HoldReleased
    | ShortfallRecorded
    | UsageLate
    | RequestRefused
)
AccountEvent = (
    AccountOpened
    | PointsGranted
    | PointsCorrected
    | GiftTaken
    | InvitationRewarded
    | PlanBought
    | PlanRenewed
    | PlanChanged
    | PlanExpired
    | RequestEvent
)


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
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
    gifts: tuple[str, ...] = ()
    """Types of gift codes that were taken."""
    subscription: Subscription | None = None
    spending: dict[int, Spent] = {}
    """By key, of those that have a quota."""

    @property
    def posted_upt(self) -> int:
        return self.issued_upt - self.charged_upt

    @property
    def available_upt(self) -> int:
        return self.issued_upt - self.charged_upt - self.held_upt

    def quota_period_us(self, key: int) -> int:
        """The latest period that the key spent or holds anything in; 0: none."""
        held_us = [
            hold.quota.period_us
            for hold in self.holds.values()
            if hold.key == key and hold.quota is not None
        ]
        spent = self.spending.get(key)
        return max(held_us, default=0) if spent is None else max(spent.period_us, *held_us, 0)

    def quota_left_upt(self, key: int, quota: Quota) -> int:
        """What the key may still spend: its limit less what was charged and is held. May be < 0.

        Nothing in a period that another has followed: what was charged in it is not kept.
        """
        spent = self.spending.get(key)
        if spent is not None and spent.period_us > quota.period_us:
            return 0  # what was charged in the earlier period is not kept
        charged_upt = 0 if spent is None or spent.period_us < quota.period_us else spent.amount_upt
        held_upt = sum(
            hold.amount_upt
            for hold in self.holds.values()
            if hold.key == key and hold.quota is not None
        )
        return quota.limit_upt - charged_upt - held_upt


class ImpossibleHistory(ValueError):
    """An event that cannot follow the state: the stream's bytes are not what was decided."""


def apply(state: Account, event: AccountEvent, version: int, at_us: int) -> Account:
    """The account after one more event. Raises ImpossibleHistory where an invariant would break."""
    if (version == 1) is not isinstance(event, AccountOpened):
        raise ImpossibleHistory("an account is opened once, first")
    after = _apply(state, event, at_us)
    if after.available_upt < 0 or after.held_upt < 0 or after.posted_upt < 0:
        raise ImpossibleHistory(f"I2: {type(event).__name__} makes the balance negative")
    return after


def _apply(state: Account, event: AccountEvent, at_us: int) -> Account:
    match event:
        case AccountOpened():
            return _with(state, person=event.person)
        case PointsGranted() | InvitationRewarded():
            return _issued(state, event.amount_upt)
        case GiftTaken():
            if event.type in state.gifts:
                raise ImpossibleHistory(f"I5: a gift of type {event.type!r} is taken twice")
            return _issued(_with(state, gifts=(*state.gifts, event.type)), event.amount_upt)
        case PointsCorrected():
            return _with(state, issued_upt=state.issued_upt + event.amount_upt)
        case PlanBought() | PlanRenewed() | PlanChanged() | PlanExpired():
            return _subscribed(state, event, at_us)
        case _:
            return _of_request(state, event, at_us)


def _of_request(state: Account, event: RequestEvent, at_us: int) -> Account:
    match event:
        case PointsHeld():
            return _held(state, event, at_us)
        case HoldSettled():
            return _settled(state, event)
        case HoldReleased():
            return _released(state, event)
        case HoldExtended():
            return _extended(state, event)
        case UsageLate():
            shortfall_upt = state.shortfall_upt + _counted(event.shortfall_upt)
            state = _charged(_with(state, shortfall_upt=shortfall_upt), event.amount_upt)
            return _spent(state, event.key, event.quota, event.amount_upt)
        case ShortfallRecorded():
            return _with(state, shortfall_upt=state.shortfall_upt + _counted(event.amount_upt))
        case RequestRefused():
            hour = at_us // HOUR_US
            same_hour = hour == state.refusals_hour
            return _with(state, refusals_hour=hour, refusals=state.refusals + 1 if same_hour else 1)
        case _:
            assert_never(event)


def _subscribed(
    state: Account, event: PlanBought | PlanRenewed | PlanChanged | PlanExpired, at_us: int
) -> Account:
    current = state.subscription
    match event:
        case PlanBought():
            if current is not None:
                raise ImpossibleHistory("a plan is bought where there is none")
            after = begun(event.plan, event.months, event.segment, event.anchor_us, event.time_zone)
            return _charged(_with(state, subscription=after), event.segment.paid_upt)
        case PlanRenewed():
            after = renewed(_kept(current), event.plan, event.months, event.segment, at_us)
            return _charged(_with(state, subscription=after), event.segment.paid_upt)
        case PlanChanged():
            after = changed(
                _kept(current),
                event.plan,
                event.months,
                event.segment,
                event.time_zone,
                event.carry,
            )
            charged_upt = state.charged_upt + event.segment.paid_upt - event.credit_upt
            return _with(state, subscription=after, charged_upt=charged_upt)
        case PlanExpired():
            _kept(current)
            return _with(state, subscription=None)


def _kept(subscription: Subscription | None) -> Subscription:
    if subscription is None:
        raise ImpossibleHistory("there is no subscription")
    return subscription


def _held(state: Account, event: PointsHeld, at_us: int) -> Account:
    if event.request_id in state.holds:
        raise ImpossibleHistory(f"I3: {event.request_id} is held twice")
    hold = Hold(
        _counted(event.amount_upt),
        event.model,
        event.price.version,
        event.input_bound,
        at_us,
        event.key,
        event.terms,
        event.plan,
        event.quota,
    )
    if event.plan is not None:
        state = _with(state, subscription=with_use(_kept(state.subscription), event.plan))
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


def _settled(state: Account, event: HoldSettled) -> Account:
    hold = _hold_of(state, event.request_id)
    if not 0 <= event.amount_upt <= hold.amount_upt:
        raise ImpossibleHistory(f"I4: {event.request_id} is charged more than was held")
    state = _charged(_without_hold(state, event.request_id, hold), event.amount_upt)
    return _spent(state, hold.key, hold.quota, event.amount_upt)


def _released(state: Account, event: HoldReleased) -> Account:
    hold = _hold_of(state, event.request_id)
    if hold.plan is not None and state.subscription is not None:
        state = _with(state, subscription=without_use(state.subscription, hold.plan))
    return _without_hold(state, event.request_id, hold)


def _without_hold(state: Account, request_id: str, hold: Hold) -> Account:
    holds = dict(state.holds)
    del holds[request_id]
    return _with(state, held_upt=state.held_upt - hold.amount_upt, holds=holds)


def _spent(state: Account, key: int, quota: Quota | None, amount_upt: int) -> Account:
    """Counts a charge in its key's quota."""
    if quota is None:
        return state
    spent = state.spending.get(key, Spent(quota.period_us, 0))
    if spent.period_us > quota.period_us:
        return state  # a newer period has begun since
    before_upt = spent.amount_upt if spent.period_us == quota.period_us else 0
    spent = Spent(quota.period_us, before_upt + amount_upt)
    return _with(state, spending={**state.spending, key: spent})


def _charged(state: Account, amount_upt: int) -> Account:
    return _with(state, charged_upt=state.charged_upt + _counted(amount_upt))


def _issued(state: Account, amount_upt: int) -> Account:
    return _with(state, issued_upt=state.issued_upt + _counted(amount_upt))


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
