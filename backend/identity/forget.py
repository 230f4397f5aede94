"""The decision to forget a person: a pure function to events or a refusal."""

from __future__ import annotations

import msgspec

from backend.identity.key import Key
from backend.identity.person import Name, Person
from backend.journal.commands import Accept, Decision, Refuse, Standing
from schemas.identity import KeyRevoked, NameReleased, PersonForgotten
from schemas.ids import PersonId


class AlreadyForgotten(msgspec.Struct, frozen=True):
    """Nobody of this number is there any more, or ever was."""


class LastAdministrator(msgspec.Struct, frozen=True):
    """Without them nobody could administer the site."""


def decide_forget(
    person: Standing, name: Standing, others: tuple[Standing, ...], person_id: PersonId, actor: str
) -> Decision:
    """The person is forgotten and their name is free. Streams: person, name, then the person
    streams of all other administrators, so that of two who forget each other one stays."""
    state: Person = person.state
    holder: Name = name.state
    if person.version == 0 or state.forgotten:
        return Refuse(AlreadyForgotten())
    if state.administrator and not any(_administers(other.state) for other in others):
        return Refuse(LastAdministrator())
    released = [(1, NameReleased(person_id))] if holder.person == person_id else []
    return Accept(((0, PersonForgotten(actor)), *released))


def decide_end_key(key: Standing, actor: str) -> Decision:
    """The key's end, unless it has ended or never was."""
    state: Key = key.state
    if key.version == 0 or state.revoked:
        return Accept(())
    return Accept(((0, KeyRevoked(actor)),))


def _administers(person: Person) -> bool:
    return person.administrator and not person.forgotten
