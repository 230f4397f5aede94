"""Events of `account:` and `code:` streams. Ids and amounts only: no name, no text, no secret."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final
from uuid import UUID

import msgspec

from schemas.ids import ChannelId, KeyId, PersonId, RequestId
from schemas.money import MicroPoints
from schemas.plans import PlanRef, PlanUse, Quota, Segment
from schemas.prices import PLAIN_TERMS, PriceRef, Terms
from schemas.usage import Basis, Usage

RELAY_PURPOSES: Final = "relay."
"""What purposes of calls through the relay API begin with: plans pay for them only where they say
so.
"""


class LedgerFact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all events of an account share: a released schema number that is never edited."""

    SCHEMA: ClassVar[int] = 1


class GrantKind(StrEnum):
    OPERATOR = "operator"
    TRIAL = "trial"
    FIRST_ADMINISTRATOR = "first_administrator"
    REDEMPTION = "redemption"
    """A redemption code; `source` names its stream."""
    INVITED = "invited"
    """For registering on somebody's invitation."""
    INITIAL = "initial"
    """What the site gives every new account."""


class ReleaseReason(StrEnum):
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_CUT = "upstream_cut"
    NO_CHANNEL = "no_channel"
    CLIENT_LEFT = "client_left"
    UPSTREAM_REFUSED = "upstream_refused"
    UNAFFORDABLE = "unaffordable"
    """The exact count of the input left nothing to pay an answer with."""
    SWEPT = "swept"


class RefusalReason(StrEnum):
    INSUFFICIENT_POINTS = "insufficient_points"
    KEY_QUOTA = "key_quota"
    """The key's own spending limit is reached."""


class CodeKind(StrEnum):
    REDEEM = "redeem"
    """One use each; a person may use many."""
    GIFT = "gift"
    """One use each, and a person one of each type."""


class AccountOpened(LedgerFact, frozen=True):
    person: PersonId


class PointsGranted(LedgerFact, frozen=True):
    SCHEMA: ClassVar[int] = 2
    amount_upt: MicroPoints
    kind: GrantKind
    actor: str
    """Who did it: `cli`, `site`, or `person:7`."""
    source: str = ""
    """The stream that the points come from, such as a code's; empty: none."""


class PointsHeld(LedgerFact, frozen=True):
    """A request was let in and this much set aside for it."""

    SCHEMA: ClassVar[int] = 2
    request_id: RequestId
    amount_upt: MicroPoints
    purpose: str
    """`relay.chat` for now; titles and searches get their own."""
    key: KeyId
    model: str
    price: PriceRef
    streamed: bool
    input_bound: int
    """Upper bound of the input, tokens."""
    output_bound: int
    """Output tokens that the hold pays for, all choices together."""
    channels: tuple[ChannelId, ...] = ()
    """The channels in the order in which they would be tried."""
    terms: Terms = PLAIN_TERMS
    plan: PlanUse | None = None
    """A subscription pays: the amount is zero and one call of the item is used."""
    quota: Quota | None = None
    """The key's spending limit, where it has one."""


class HoldExtended(LedgerFact, frozen=True):
    request_id: RequestId
    amount_upt: MicroPoints
    """How much more is held."""


class Served(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a request was answered; the usage log's columns."""

    channel: ChannelId | None = None
    upstream_model: str | None = None
    status: int = 0
    """HTTP status given to the client; 0 where the client had left or a sweep ended it."""
    duration_ms: int = 0
    first_token_ms: int | None = None
    attempts: int = 0
    error: str | None = None
    """Error code of `schemas.errors`, never a message from outside."""


class HoldSettled(LedgerFact, frozen=True):
    """The one charge of a request. `amount_upt` = cost of `usage` at `price` under `terms`, less
    any shortfall; zero where a plan paid.
    """

    SCHEMA: ClassVar[int] = 2
    request_id: RequestId
    amount_upt: MicroPoints
    usage: Usage
    basis: Basis
    price: PriceRef
    served: Served
    swept: bool = False
    terms: Terms = PLAIN_TERMS
    plan: PlanUse | None = None


class HoldReleased(LedgerFact, frozen=True):
    """The request cost nothing; all that was held is available again."""

    request_id: RequestId
    reason: ReleaseReason
    served: Served


class ShortfallRecorded(LedgerFact, frozen=True):
    """Consumed but not charged, because nothing was left to charge."""

    request_id: RequestId
    amount_upt: MicroPoints


class UsageLate(LedgerFact, frozen=True):
    """Real usage arrived after a sweep had ended the request; charges what is available of the
    rest.
    """

    SCHEMA: ClassVar[int] = 2
    request_id: RequestId
    sweep_event_id: UUID
    amount_upt: MicroPoints
    shortfall_upt: MicroPoints
    usage: Usage
    basis: Basis
    price: PriceRef
    served: Served
    terms: Terms = PLAIN_TERMS
    plan: PlanUse | None = None
    key: KeyId = KeyId(0)
    quota: Quota | None = None
    """The key's spending limit, where it has one: what is charged late counts in it."""


class PointsCorrected(LedgerFact, frozen=True):
    """A new entry that points at an old one; history is never edited. May be negative, never below
    zero.
    """

    amount_upt: MicroPoints
    corrects_event_id: UUID
    actor: str


class RequestRefused(LedgerFact, frozen=True):
    """Not let in for want of points; capped per account, so that refusals cannot flood the log."""

    request_id: RequestId
    reason: RefusalReason
    key: KeyId
    model: str
    price: PriceRef
    missing_upt: MicroPoints


class GiftTaken(LedgerFact, frozen=True):
    """A gift code's points; a second one of the same type is refused."""

    type: str
    amount_upt: MicroPoints
    source: str
    """The code's stream."""


class PlanBought(LedgerFact, frozen=True):
    """A subscription begins; its price, `segment.paid_upt`, is charged with this event."""

    plan: PlanRef
    months: int
    segment: Segment
    anchor_us: int
    """Periods are calendar months counted from here."""
    time_zone: str


class PlanRenewed(LedgerFact, frozen=True):
    """More time of the same level, after what was paid for before."""

    plan: PlanRef
    months: int
    segment: Segment


class PlanChanged(LedgerFact, frozen=True):
    """Another level from now on: what was left of the old one is credited, the new one charged."""

    plan: PlanRef
    months: int
    segment: Segment
    time_zone: str
    credit_upt: MicroPoints
    """Unused time × price paid for it, rounded down."""
    carry: int
    """What rounding has left over so far, in 10⁻⁹ of a micro-point; added at the next change."""


class PlanExpired(LedgerFact, frozen=True):
    level: int


class InvitationRewarded(LedgerFact, frozen=True):
    """Somebody registered on this account's invitation."""

    amount_upt: MicroPoints
    invited: PersonId


class CodeIssued(LedgerFact, frozen=True):
    kind: CodeKind
    amount_upt: MicroPoints
    batch: str
    """Codes that were made together."""
    hint: str
    """Its last characters, enough for an operator to tell it from others."""
    actor: str
    type: str = ""
    """Of gift codes: a person takes one of each."""
    expires_us: int | None = None


class CodeRedeemed(LedgerFact, frozen=True):
    """Lands as a unit with the account's credit."""

    person: PersonId


class CodeVoided(LedgerFact, frozen=True):
    actor: str


LedgerEvent = (
    AccountOpened
    | PointsGranted
    | PointsHeld
    | HoldExtended
    | HoldSettled
    | HoldReleased
    | ShortfallRecorded
    | UsageLate
    | PointsCorrected
    | RequestRefused
    | GiftTaken
    | PlanBought
    | PlanRenewed
    | PlanChanged
    | PlanExpired
    | InvitationRewarded
    | CodeIssued
    | CodeRedeemed
    | CodeVoided
)
