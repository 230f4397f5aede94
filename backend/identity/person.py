"""The folds of `person:` and `name:` streams. Pure; what is personal stays sealed."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.journal.fold import Fold
from schemas.identity import (
    InvitationIssued,
    NameReleased,
    NameTaken,
    PasswordSet,
    PersonForgotten,
    PersonRegistered,
    ReasonGiven,
)


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One person. Sealed values keep the version they are bound to."""

    name_sealed: bytes = b""
    """Sealed at version 1."""
    name_hmac: bytes = b""
    administrator: bool = False
    trial: bool = False
    password_sealed: bytes = b""
    """Empty: no password, so that nobody signs in."""
    password_version: int = 0
    invitation_hmac: bytes = b""
    """Keyed hash of the invitation that is valid now; empty: none."""
    forgotten: bool = False
    """Nothing is left of them but the account's number; nothing follows."""


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who has a name; 0: nobody now."""

    person: int = 0


class ImpossibleHistory(ValueError):
    """An event that cannot follow the state: the stream's bytes are not what was decided."""


def apply(state: Person, event: Any, version: int, at_us: int) -> Person:
    """The person after one more event. Raises ImpossibleHistory."""
    if state.forgotten:
        raise ImpossibleHistory("nothing follows a forgetting")
    match event:
        case PersonRegistered():
            if version != 1:
                raise ImpossibleHistory("a person is registered once, first")
            return Person(event.name_sealed, event.name_hmac, event.administrator, event.trial)
        case PasswordSet():
            return msgspec.structs.replace(
                state, password_sealed=event.hash_sealed, password_version=version
            )
        case InvitationIssued():
            return msgspec.structs.replace(state, invitation_hmac=event.code_hmac)
        case ReasonGiven():
            return state
        case PersonForgotten():
            # Their name's hash too: with SECRET it would tell whether a guessed name was theirs.
            return Person(trial=state.trial, forgotten=True)
        case _:
            raise ImpossibleHistory(f"{type(event).__name__} is no event of a person")


def apply_to_name(state: Name, event: Any, version: int, at_us: int) -> Name:
    """Who has the name after one more event. Raises ImpossibleHistory."""
    match event:
        case NameTaken():
            if state.person:
                raise ImpossibleHistory("a name belongs to one person at a time")
            return Name(event.person)
        case NameReleased():
            if state.person != event.person:
                raise ImpossibleHistory("only who has a name can give it up")
            return Name()
        case _:
            raise ImpossibleHistory(f"{type(event).__name__} is no event of a name")


FORGOTTEN_MARK: Final = b'"forgotten":true'
"""What the stored state of a forgotten person holds and no other does: finds them by SQL."""
PERSON: Final = Fold("person", Person(), apply)
NAME: Final = Fold("name", Name(), apply_to_name)
