"""Holds a log against its seals: at each one's place the heads have the root it signed. Pure.

Rows come in the log's order; a seal made of partitions is met at each partition's own count.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from uuid import UUID

from backend.journal.seal import (
    BrokenSeal,
    HeadTree,
    Seal,
    verify_follows,
    verify_signature,
)
from schemas.event import Recorded

SEALS_STREAM: Final = "seals"
"""Named where no stream can be: its version is the seal's number."""

Note = Callable[[str, int, str], None]
"""`note(stream, version, what)`."""

_Head = tuple[str, int, bytes]
_Part = tuple[str, int]


class SealedLog:
    """Takes rows and the seals of one chain; notes every seal that the rows do not bear out."""

    def __init__(
        self,
        seals: Iterator[Seal],
        site_id: UUID,
        note: Note,
        *,
        known_heads: Mapping[int, Mapping[str, tuple[int, bytes]]] | None = None,
        last: Seal | None = None,
        tree: HeadTree | None = None,
        events: int = 0,
    ) -> None:
        """`known_heads`: what some seals cover, by number, so that a stream can be named.

        `last`, `tree`, `events`: a seal that was held against the log before, to go on from.
        """
        self._seals: Final = seals
        self._site_id: Final = site_id
        self._note: Final = note
        self._known_heads: Final = known_heads or {}
        self._waiting: Final[defaultdict[_Part, deque[_Head]]] = defaultdict(deque)
        self._taken: Final[defaultdict[_Part, int]] = defaultdict(int)
        self._counted: Final[defaultdict[_Part, int]] = defaultdict(int)
        self.tree: Final = HeadTree() if tree is None else tree
        self.events = events
        self.last = last
        """The newest seal that was read and is its maker's."""
        self.confirmed = 0
        self._next: Seal | None = None
        self._advance()

    @property
    def waits(self) -> bool:
        """Whether a seal covers more than has been fed."""
        return self._next is not None

    def feed(self, rows: Sequence[Recorded]) -> None:
        for row in rows:
            if self._next is None:
                self._take_rest(row)
            elif self._next.places:
                self._take_part(row)
            else:
                self.tree.put(row.stream, row.version, row.hash)
                self.events += 1
                self._confirm_reached()

    def finish(self) -> None:
        """The log ends here: seals that cover more say that something was cut off."""
        self._confirm_reached()
        while self._next is not None:
            seal = self._next
            what = f"seal {seal.number} covers {seal.events} events, the log has {self.events}"
            self._unborne(seal, what)
            self._advance()

    def _take_rest(self, row: Recorded) -> None:
        if not self._counted:
            self.tree.put(row.stream, row.version, row.hash)
        self.events += 1

    def _take_part(self, row: Recorded) -> None:
        part = (row.topic, row.shard)
        self._waiting[part].append((row.stream, row.version, row.hash))
        self._counted[part] += 1
        self.events += 1
        self._confirm_reached()

    def _confirm_reached(self) -> None:
        while self._next is not None and self._reached(self._next):
            self._confirm(self._next)

    def _reached(self, seal: Seal) -> bool:
        if not seal.places:
            return self.events >= seal.events
        if self.events < seal.events:
            return False
        return all(self._counted[place.topic, place.shard] >= place.events for place in seal.places)

    def _confirm(self, seal: Seal) -> None:
        for place in seal.places:
            part = (place.topic, place.shard)
            waiting = self._waiting[part]
            while self._taken[part] < place.events:
                self.tree.put(*waiting.popleft())
                self._taken[part] += 1
        if (self.tree.root(), len(self.tree)) == (seal.root, seal.streams):
            self.confirmed += 1
        else:
            self._unborne(seal, f"the log is not what seal {seal.number} covers")
        self._advance()

    def _advance(self) -> None:
        self._next = self._read()

    def _read(self) -> Seal | None:
        """The next seal if it is its maker's and follows; else that is noted, and no other read."""
        try:
            seal = next(self._seals, None)
            if seal is None:
                return None
            verify_signature(seal)
            verify_follows(seal, self.last, self._site_id)
        except BrokenSeal as error:
            number = 1 if self.last is None else self.last.number + 1
            self._note(SEALS_STREAM, number, str(error))
            return None
        self.last = seal
        return seal

    def _unborne(self, seal: Seal, what: str) -> None:
        named = self._first_difference(self._known_heads.get(seal.number, {}))
        if named is None:
            self._note(SEALS_STREAM, seal.number, what)
        else:
            self._note(*named, what)

    def _first_difference(self, heads: Mapping[str, tuple[int, bytes]]) -> tuple[str, int] | None:
        """The first stream that was sealed with another head than it has here."""
        for stream in sorted(heads):
            version, digest = heads[stream]
            found = self.tree.get(stream)
            if found is None or found[0] < version:
                return stream, 1 if found is None else found[0] + 1
            if found[0] == version and found[1] != digest:
                return stream, version
        return None
