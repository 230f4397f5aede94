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

Part = tuple[str, int]
"""(topic, shard)."""
ALL: Final[Part] = ("*", 0)
"""The table is read in one order."""

_Head = tuple[str, int, bytes]


def needs_of(seal: Seal) -> dict[Part, int]:
    """How many rows of each part a seal covers."""
    if not seal.places:
        return {ALL: seal.events}
    return {(place.topic, place.shard): place.events for place in seal.places}


class Reach:
    """Counts rows as they pass, and tells the first one that a seal does not cover."""

    def __init__(self, seal: Seal, counted: Mapping[Part, int]) -> None:
        """`counted`: rows of each part that passed before."""
        self._needs: Final = needs_of(seal)
        self._by_partition: Final = bool(seal.places)
        self._counted: Final = defaultdict[Part, int](int, counted)

    def first_beyond(self, rows: Sequence[Recorded]) -> int | None:
        """The index of that row; None where the seal covers all of them."""
        for index, row in enumerate(rows):
            part = (row.topic, row.shard) if self._by_partition else ALL
            if self._counted[part] >= self._needs.get(part, 0):
                return index
            self._counted[part] += 1
        return None

    @property
    def counted(self) -> dict[Part, int]:
        """Rows of each part before the one that was told."""
        return dict(self._counted)


class SealedLog:
    """Takes rows and the seals of one chain; notes every seal that the rows do not bear out.

    `counted` and `tree`: what was fed so far, and the heads after it.
    """

    def __init__(
        self,
        seals: Iterator[Seal],
        site_id: UUID,
        note: Note,
        *,
        by_partition: bool = False,
        known_heads: Mapping[int, Mapping[str, tuple[int, bytes]]] | None = None,
        last: Seal | None = None,
        tree: HeadTree | None = None,
        counted: Mapping[Part, int] | None = None,
    ) -> None:
        """`by_partition`: seals made from Kafka. `known_heads`: what some seals cover, by number.

        `last` and `tree`: a seal that was held against the log before and its heads, to go on from.
        `counted`: where the heads are of another place than the seal's, the rows before it.
        """
        self._seals: Final = seals
        self._site_id: Final = site_id
        self._note: Final = note
        self._by_partition: Final = by_partition
        self._known_heads: Final = known_heads or {}
        self._waiting: Final[defaultdict[Part, deque[_Head]]] = defaultdict(deque)
        self._taken: Final[defaultdict[Part, int]] = defaultdict(int)
        self.counted: Final[defaultdict[Part, int]] = defaultdict(int)
        self.tree: Final = HeadTree() if tree is None else tree
        if counted is None and last is not None:
            counted = needs_of(last)
        self._taken.update(counted or {})
        self.counted.update(counted or {})
        self.events = sum(self.counted.values())
        self.last = last
        """The newest seal that was read and is its maker's."""
        self._since: Final[dict[str, int]] = {}
        """Stream → its first version behind the newest seal that the rows bear out."""
        self._is_borne_out = True
        self._held_back: Final[list[tuple[int, str]]] = []
        """Seals that are not, while a newer one may tell the stream."""
        self._next: Seal | None = None
        self._needed: dict[Part, int] = {}
        self._advance()
        if self.events:
            # What is known already may be all that the next seal covers.
            self._confirm_reached()

    @property
    def waits(self) -> bool:
        """Whether a seal covers more than has been fed."""
        return self._next is not None

    def feed(self, rows: Sequence[Recorded]) -> None:
        for row in rows:
            part = (row.topic, row.shard) if self._by_partition else ALL
            taken = self._taken[part]
            is_next = taken == self.counted[part]
            self.counted[part] += 1
            self.events += 1
            # Only what lies beyond the next seal waits, so that a late first seal costs no memory.
            if self._next is None or (is_next and taken < self._needed.get(part, 0)):
                self._put(part, (row.stream, row.version, row.hash))
            else:
                self._waiting[part].append((row.stream, row.version, row.hash))
            if self._next is not None:
                self._confirm_reached()

    def finish(self) -> None:
        """The log ends here: seals that cover more say that something was cut off."""
        self._take(dict(self.counted))
        while self._next is not None:
            seal = self._next
            what = f"seal {seal.number} covers {seal.events} events, the log has {self.events}"
            self._unborne(seal, what)
            self._advance()
        self._tell()

    def _confirm_reached(self) -> None:
        while self._next is not None and self.events >= self._next.events:
            needs = self._needed
            if any(self.counted.get(part, 0) < events for part, events in needs.items()):
                return
            self._take(needs)
            self._confirm(self._next)
            self._advance()
        if self._next is None:
            self._take(dict(self.counted))

    def _take(self, upto: Mapping[Part, int]) -> None:
        """Moves what waits into the tree, each partition up to a count."""
        for part, count in upto.items():
            waiting = self._waiting[part]
            while self._taken[part] < count:
                self._put(part, waiting.popleft())

    def _put(self, part: Part, head: _Head) -> None:
        self.tree.put(*head)
        self._taken[part] += 1
        if self._is_borne_out:
            self._since.setdefault(head[0], head[1])

    def _confirm(self, seal: Seal) -> None:
        if (self.tree.root(), len(self.tree)) != (seal.root, seal.streams):
            self._unborne(seal, f"the log is not what seal {seal.number} covers")
        elif self._is_borne_out:
            self._since.clear()

    def _advance(self) -> None:
        self._next = self._read()
        self._needed = {} if self._next is None else needs_of(self._next)

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
        """A seal says otherwise: the stream is named where heads that were sealed are known."""
        self._is_borne_out = False
        self._held_back.append((seal.number, what))
        heads = self._known_heads.get(seal.number)
        named = None if heads is None else self._first_difference(heads)
        if named is not None:
            _, first = self._held_back.pop(0)
            self._note(*named, first)
        if named is not None or all(number <= seal.number for number in self._known_heads):
            self._tell()

    def _tell(self) -> None:
        for number, what in self._held_back:
            self._note(SEALS_STREAM, number, what)
        self._held_back.clear()

    def _first_difference(self, heads: Mapping[str, tuple[int, bytes]]) -> tuple[str, int] | None:
        """The first stream that was sealed with another head than it has here.

        Its version is the first that may be wrong: seals keep heads and not what lies between.
        """
        for stream in sorted(heads):
            version, digest = heads[stream]
            found = self.tree.get(stream)
            if found is None or found[0] < version:
                return stream, 1 if found is None else found[0] + 1
            if found[0] == version and found[1] != digest:
                return stream, self._since.get(stream, version)
        return None
