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
    ) -> None:
        """`by_partition`: seals made from Kafka. `known_heads`: what some seals cover, by number.

        `last` and `tree`: a seal that was held against the log before and its heads, to go on from.
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
        self.events = 0
        if last is not None:
            self._taken.update(self._needs(last))
            self.counted.update(self._needs(last))
            self.events = last.events
        self.last = last
        """The newest seal that was read and is its maker's."""
        self._next: Seal | None = None
        self._advance()

    @property
    def waits(self) -> bool:
        """Whether a seal covers more than has been fed."""
        return self._next is not None

    def feed(self, rows: Sequence[Recorded]) -> None:
        for row in rows:
            part = (row.topic, row.shard) if self._by_partition else ALL
            self.counted[part] += 1
            self.events += 1
            if self._next is None:
                self.tree.put(row.stream, row.version, row.hash)
                self._taken[part] += 1
            else:
                self._waiting[part].append((row.stream, row.version, row.hash))
                self._confirm_reached()

    def finish(self) -> None:
        """The log ends here: seals that cover more say that something was cut off."""
        self._take(dict(self.counted))
        while self._next is not None:
            seal = self._next
            what = f"seal {seal.number} covers {seal.events} events, the log has {self.events}"
            self._unborne(seal, what)
            self._advance()

    def _needs(self, seal: Seal) -> dict[Part, int]:
        if not self._by_partition:
            return {ALL: seal.events}
        return {(place.topic, place.shard): place.events for place in seal.places}

    def _confirm_reached(self) -> None:
        while self._next is not None and self.events >= self._next.events:
            needs = self._needs(self._next)
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
                self.tree.put(*waiting.popleft())
                self._taken[part] += 1

    def _confirm(self, seal: Seal) -> None:
        if (self.tree.root(), len(self.tree)) != (seal.root, seal.streams):
            self._unborne(seal, f"the log is not what seal {seal.number} covers")

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
