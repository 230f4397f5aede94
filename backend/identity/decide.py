"""Decisions about people, names and keys: pure functions to events or a refusal."""

from __future__ import annotations

import hmac
from collections.abc import Callable

import msgspec

from backend.identity.key import Key
from backend.identity.person import Name, Person
from backend.journal.commands import Accept, Decision, Refuse, Standing
from schemas.identity import (
    InvitationIssued,
    KeyCreated,
    KeyRevoked,
    NameTaken,
    PasswordSet,
    PersonRegistered,
    ReasonGiven,
    Scope,
)
from schemas.ids import PersonId

SealAt = Callable[[int], bytes]
"""Seals a value that is to lie at this version of its stream."""


class NameIsTaken(msgspec.Struct, frozen=True):
    pass


class NoSuchPerson(msgspec.Struct, frozen=True):
    pass


class NoSuchKey(msgspec.Struct, frozen=True):
    pass


class NoAdministrator(msgspec.Struct, frozen=True):
    """Asked for a key that administers, for somebody who does not."""


class UnknownInvitation(msgspec.Struct, frozen=True):
    """Never issued, replaced by a newer one, or its person is gone."""


class KeyExists(msgspec.Struct, frozen=True):
    pass


class AlreadyRevoked(msgspec.Struct, frozen=True):
    pass


def decide_register(
    person: Standing, name: Standing, person_id: PersonId, registered: PersonRegistered,
    password: PasswordSet | None,
) -> Decision:  # fmt: skip
    """A new person takes a free name. Streams: person, name. Sealed for versions 1 and 2."""
    holder: Name = name.state
    if person.version > 0 or holder.person:
        return Refuse(NameIsTaken())
    events = [(0, registered), *([(0, password)] if password else []), (1, NameTaken(person_id))]
    return Accept(tuple(events))


def decide_set_password(person: Standing, seal_at: SealAt) -> Decision:
    if not _is_there(person):
        return Refuse(NoSuchPerson())
    return Accept(((0, PasswordSet(seal_at(person.version + 1))),))


def decide_reason(person: Standing, about_command_id: str, seal_at: SealAt) -> Decision:
    """The reason of what the same unit records on another stream."""
    if not _is_there(person):
        return Refuse(NoSuchPerson())
    return Accept(((0, ReasonGiven(about_command_id, seal_at(person.version + 1))),))


def decide_create_key(key: Standing, person: Standing, created: KeyCreated) -> Decision:
    """Streams: key, and the person's, who must exist (or come to exist in the same unit)."""
    owner: Person = person.state
    if not _is_there(person):
        return Refuse(NoSuchPerson())
    if Scope.ADMIN in created.scopes and not owner.administrator:
        return Refuse(NoAdministrator())
    return _create_key(key, created)


def decide_add_key(key: Standing, created: KeyCreated) -> Decision:
    """The key alone, where its person is registered in the same unit; it never administers."""
    if Scope.ADMIN in created.scopes:
        return Refuse(NoAdministrator())
    return _create_key(key, created)


def decide_revoke_key(key: Standing, actor: str) -> Decision:
    state: Key = key.state
    if key.version == 0:
        return Refuse(NoSuchKey())
    if state.revoked:
        return Refuse(AlreadyRevoked())
    return Accept(((0, KeyRevoked(actor)),))


def decide_issue_invitation(person: Standing, code_hmac: bytes) -> Decision:
    """The person's invitation from now on; the one before ends with it."""
    if not _is_there(person):
        return Refuse(NoSuchPerson())
    return Accept(((0, InvitationIssued(code_hmac)),))


def decide_accept_invitation(inviter: Standing, code_hmac: bytes) -> Decision:
    """Only reads: whether this is the inviter's invitation at the moment of the registration."""
    state: Person = inviter.state
    if not is_invitation(state, code_hmac):
        return Refuse(UnknownInvitation())
    return Accept(())


def is_invitation(inviter: Person, code_hmac: bytes) -> bool:
    """False too for who was forgotten."""
    if inviter.forgotten or not inviter.invitation_hmac:
        return False
    return hmac.compare_digest(inviter.invitation_hmac, code_hmac)


def _is_there(person: Standing) -> bool:
    """Registered, and not forgotten since."""
    state: Person = person.state
    return person.version > 0 and not state.forgotten


def _create_key(key: Standing, created: KeyCreated) -> Decision:
    if key.version > 0:
        return Refuse(KeyExists())
    return Accept(((0, created),))
