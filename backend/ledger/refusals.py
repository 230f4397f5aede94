"""Why the ledger refuses: values, until the edge turns them into answers."""

from __future__ import annotations

import msgspec

from schemas.identity import Reset
from schemas.money import MicroPoints


class MissingPoints(msgspec.Struct, frozen=True):
    """Available is below what is needed by this much."""

    missing_upt: MicroPoints


class KeyQuotaReached(msgspec.Struct, frozen=True):
    """The account has enough, but the key may not spend it in this period."""

    missing_upt: MicroPoints
    reset: Reset


class TooManyAtOnce(msgspec.Struct, frozen=True):
    scope: str
    """`account` or `key`."""
    limit: int


class NotForGroup(msgspec.Struct, frozen=True):
    """The group may call other models only."""

    group: str


class NoSuchAccount(msgspec.Struct, frozen=True):
    pass


class NoSuchHold(msgspec.Struct, frozen=True):
    """The request has an outcome already, or was never let in."""


class AlreadyOpen(msgspec.Struct, frozen=True):
    pass


class TooMuch(msgspec.Struct, frozen=True):
    """The amount is not one that can be granted."""


class UnknownCode(msgspec.Struct, frozen=True):
    """No code was ever issued so: a guess."""


class SpentCode(msgspec.Struct, frozen=True):
    """Used, expired or void; people are told what they are told of an unknown one."""


class OtherKindOfCode(msgspec.Struct, frozen=True):
    """A gift code where a redemption code is asked for, or the other way round."""


class GiftTakenBefore(msgspec.Struct, frozen=True):
    """A person takes one gift code of a type."""

    type: str


class PlanNotOffered(msgspec.Struct, frozen=True):
    pass


class TooFarAhead(msgspec.Struct, frozen=True):
    """Nobody pays for more than ten years."""


class JustBought(msgspec.Struct, frozen=True):
    """The same purchase was made a moment ago."""


class NothingExpired(msgspec.Struct, frozen=True):
    pass
