"""Events of `person:`, `name:` and `key:` streams.

Names and reasons are sealed with the account's data key, hashes and secrets with the site's key.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from schemas.ids import PersonId
from schemas.money import MicroPoints


class IdentityFact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all identity events share: a released schema number that is never edited."""

    SCHEMA: ClassVar[int] = 1


class PersonRegistered(IdentityFact, frozen=True):
    name_sealed: bytes
    name_hmac: bytes
    """Keyed hash of the folded name: finds the person without naming them."""
    administrator: bool = False
    trial: bool = False


class PasswordSet(IdentityFact, frozen=True):
    hash_sealed: bytes
    """An argon2id hash, sealed with the site's key; AAD = stream and version."""


class ReasonGiven(IdentityFact, frozen=True):
    """The free-text reason of a grant, sealed; lands as a unit with what it explains."""

    about_command_id: str
    reason_sealed: bytes


class NameTaken(IdentityFact, frozen=True):
    """On `name:<keyed HMAC>`: a name belongs to one person at a time."""

    person: PersonId


class NameReleased(IdentityFact, frozen=True):
    person: PersonId


class Scope(StrEnum):
    """What a key opens."""

    RELAY = "relay"
    WALLET = "wallet"
    ADMIN = "admin"
    """Counts only while the key's owner is an administrator."""


class Reset(StrEnum):
    """When a key's quota begins anew; days, weeks (Monday) and months in UTC."""

    NEVER = "never"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class KeyCreated(IdentityFact, frozen=True):
    """An API key: its hash sealed, never the key itself."""

    SCHEMA: ClassVar[int] = 2
    person: PersonId
    hash_sealed: bytes
    name: str
    hint: str
    """First characters of the key, enough for its owner to tell it from others."""
    models: tuple[str, ...] = ()
    """Empty: every model."""
    expires_us: int | None = None
    scopes: tuple[Scope, ...] = (Scope.RELAY, Scope.WALLET)
    quota_upt: MicroPoints | None = None
    """What it may spend in a period; None: all that the account has."""
    reset: Reset = Reset.NEVER
    addresses: tuple[str, ...] = ()
    """Networks (CIDR) it may be used from; empty: everywhere."""
    concurrency: int | None = None
    """Requests under way at once; None: no limit."""
    group: str = ""
    """Bound to a group; empty: the account's own."""


class KeyRevoked(IdentityFact, frozen=True):
    actor: str


class PersonForgotten(IdentityFact, frozen=True):
    """The data key is gone with this event: what was sealed with it cannot be read any more."""

    actor: str


class InvitationIssued(IdentityFact, frozen=True):
    """The person's invitation; a new one ends the one before."""

    code_hmac: bytes


IdentityEvent = (
    PersonRegistered
    | PersonForgotten
    | PasswordSet
    | ReasonGiven
    | InvitationIssued
    | NameTaken
    | NameReleased
    | KeyCreated
    | KeyRevoked
)
