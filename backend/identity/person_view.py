"""Who administers the site, in memory: for checking a key's scope without I/O. No names here."""

from __future__ import annotations

from typing import ClassVar

from backend.identity.person import Person
from schemas.ids import PersonId, person_stream


class PersonView:
    """Listener of a `StateView` for `person:` streams; keeps the few who are administrators."""

    kinds: ClassVar[tuple[str, ...]] = ("person",)

    def __init__(self) -> None:
        self._administrators: set[str] = set()

    def is_administrator(self, person: PersonId) -> bool:
        """False for who was forgotten, and for who is not known here yet."""
        return person_stream(person) in self._administrators

    def put(self, stream: str, version: int, state: Person) -> None:
        if state.administrator and not state.forgotten:
            self._administrators.add(stream)
        else:
            self.drop(stream)

    def drop(self, stream: str) -> None:
        self._administrators.discard(stream)
