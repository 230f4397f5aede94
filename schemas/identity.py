"""Events of `person:`, `name:` and `key:` streams.

Names and reasons are sealed with the account's data key, hashes and secrets with the site's key.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from schemas.ids import PersonId


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


class KeyCreated(IdentityFact, frozen=True):
    """An API key: its hash sealed, never the key itself."""

    person: PersonId
    hash_sealed: bytes
    name: str
    hint: str
    """First characters of the key, enough for its owner to tell it from others."""
    models: tuple[str, ...] = ()
    """Empty: every model."""
    expires_us: int | None = None


class KeyRevoked(IdentityFact, frozen=True):
    actor: str


IdentityEvent = (
    PersonRegistered
    | PasswordSet
    | ReasonGiven
    | NameTaken
    | NameReleased
    | KeyCreated
    | KeyRevoked
)
