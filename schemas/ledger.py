"""Events of `account:` streams. Ids and amounts only: no name, no text, no secret."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

import msgspec

from schemas.ids import ChannelId, KeyId, PersonId, RequestId
from schemas.money import MicroPoints
from schemas.prices import PriceRef
from schemas.usage import Basis, Usage


class LedgerFact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all events of an account share: a released schema number that is never edited."""

    SCHEMA: ClassVar[int] = 1


class GrantKind(StrEnum):
    OPERATOR = "operator"
    TRIAL = "trial"
    FIRST_ADMINISTRATOR = "first_administrator"


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


class AccountOpened(LedgerFact, frozen=True):
    person: PersonId


class PointsGranted(LedgerFact, frozen=True):
    amount_upt: MicroPoints
    kind: GrantKind
    actor: str
    """Who did it: `cli`, `site`, or `person:7`."""


class PointsHeld(LedgerFact, frozen=True):
    """A request was let in and this much set aside for it."""

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
    """The one charge of a request. `amount_upt` = cost of `usage` at `price`, less any
    shortfall.
    """

    request_id: RequestId
    amount_upt: MicroPoints
    usage: Usage
    basis: Basis
    price: PriceRef
    served: Served
    swept: bool = False


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

    request_id: RequestId
    sweep_event_id: UUID
    amount_upt: MicroPoints
    shortfall_upt: MicroPoints
    usage: Usage
    basis: Basis
    price: PriceRef
    served: Served


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
)
