"""The verified fold: each row is checked against its stream's chain, then applied. Pure.

Must not read from anywhere: rows come in, in order per stream, duplicates allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import sha256
from struct import Struct
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.journal.chain import genesis_hash
from backend.journal.fold import Fold, Folds
from schemas.event import Position, Recorded, shard_of, topic_of
from schemas.registry import Event, UndecodableEvent, decode

FAULTS_KEPT: Final = 1_000
"""Of each pass; what is beyond is only counted."""

_PREFIX: Final = b"\x00\x00\x00\x08suanpan1\x00\x00\x00\x20"
_LENGTH: Final = Struct(">I")
_IDS: Final = Struct(">IqI16sI16s")
_NUMBER: Final = Struct(">Iq")
_AT: Final = Struct(">IqI")
_MARK_BYTES: Final = 8
NO_TOPIC: Final = ""


class FaultKind(StrEnum):
    """What is wrong with a row, or with the place where a row should be."""

    CHANGED = "changed"
    """The bytes are not those that were hashed, or the hash is another."""
    MISSING = "missing"
    TWICE = "twice"
    """A second row for a version, or one that stands in the wrong place of the order."""
    MISPLACED = "misplaced"
    """Topic or shard are not the stream's."""
    UNREADABLE = "unreadable"
    """No type, schema or stream that this version knows."""
    DIFFERENT = "different"
    """A table says something else than the log."""
    IMPOSSIBLE = "impossible"
    """Intact, but it cannot follow what came before."""


class Fault(msgspec.Struct, frozen=True):
    """Something wrong at a stream's version; `position` is where in the log it shows."""

    kind: FaultKind
    stream: str
    version: int
    what: str
    position: Position


class Line:
    """One stream as folded so far. `state` is meaningful while `foldable`."""

    __slots__ = (
        "doubtful",
        "epoch",
        "fold",
        "foldable",
        "hash",
        "intact",
        "marks",
        "name_part",
        "shard",
        "state",
        "stream",
        "topic",
        "version",
        "xid",
    )

    def __init__(self, stream: str, genesis: bytes, fold: Fold[Any] | None, topic: str) -> None:
        name = stream.encode()
        self.stream: Final = stream
        self.name_part: Final = _LENGTH.pack(len(name)) + name
        self.shard: Final = shard_of(stream)
        self.topic: Final = topic
        self.fold: Final = fold
        self.version = 0
        self.hash = genesis
        self.epoch = 0
        self.xid = 0
        self.state: Any = None if fold is None else fold.empty
        self.foldable = fold is not None
        self.intact = True
        """Nothing was wrong with this stream so far."""
        self.doubtful = -1 if genesis else 0
        """The version whose stored hash may be wrong, so that the next need not fit it."""
        self.marks: bytearray | None = None
        """First bytes of the newest hashes, where duplicates may come."""

    def encoded_state(self) -> bytes:
        """The state as `streams` stores it; empty where the stream could not be folded."""
        return b"" if self.fold is None or not self.foldable else self.fold.encode(self.state)

    def note_mark(self, row_hash: bytes, versions_max: int) -> None:
        """Remembers a head's hash, to tell the same row from a fork when it comes again."""
        assert self.marks is not None
        self.marks += row_hash[:_MARK_BYTES]
        if len(self.marks) > 2 * versions_max * _MARK_BYTES:
            del self.marks[: -versions_max * _MARK_BYTES]

    def mark_of(self, version: int) -> bytes | None:
        """The first bytes of the hash of a version that was passed; None if it is too far back."""
        if self.marks is None:
            return None
        begin = len(self.marks) - (self.version - version + 1) * _MARK_BYTES
        return None if begin < 0 else bytes(self.marks[begin : begin + _MARK_BYTES])

    def copy(self) -> Line:
        """Another line at the same place; states are immutable, so they are shared."""
        other = Line(self.stream, self.hash, self.fold, self.topic)
        other.version, other.epoch, other.xid = self.version, self.epoch, self.xid
        other.state = self.state
        other.foldable, other.intact = self.foldable, self.intact
        return other


Observe = Callable[[Recorded, Event, Line], None]
"""Called for each event before it is applied: the line's state is still the one before it."""


class Verifier:
    """Feeds on rows; holds every stream's line and what was found wrong."""

    def __init__(
        self,
        site_id: UUID | None,
        folds: Folds | None,
        observe: Observe | None = None,
        *,
        duplicates_known: int = 0,
    ) -> None:
        """`site_id` None: what a stream's first event is chained to is taken as it is.

        `folds` None: only chains are verified. `duplicates_known`: how many versions back the same
        row may come again without being a fault (at-least-once transports); 0: never.
        """
        self._site_id: Final = site_id
        self._folds: Final = folds
        self._observe: Final = observe
        self._duplicates_known: Final = duplicates_known
        self._type_parts: Final[dict[tuple[str, str, int], bytes]] = {}
        self._homeless: Final[dict[bytes, Recorded]] = {}
        self._missing: Final[set[tuple[str, int]]] = set()
        self._faults: Final[list[Fault]] = []
        self.lines: Final[dict[str, Line]] = {}
        self.events = 0
        """Rows that were taken in, duplicates not counted."""
        self.fault_count = 0

    def feed(self, rows: Sequence[Recorded]) -> None:
        """Verifies and applies rows; between streams any order will do, within one the log's."""
        lines, type_parts = self.lines, self._type_parts
        pack_ids, pack_at = _IDS.pack, _AT.pack
        for row in rows:
            stream, prev_hash, payload = row.stream, row.prev_hash, row.payload
            line = lines.get(stream) or self._new_line(stream)
            version = line.version + 1
            kind = (row.topic, row.type, row.schema)
            # The same bytes as `chain.event_hash`, put together from parts that repeat.
            digest = sha256(
                _PREFIX
                + prev_hash
                + line.name_part
                + pack_ids(8, row.version, 16, row.event_id.bytes, 16, row.command_id.bytes)
                + (type_parts.get(kind) or self._new_type(kind))
                + pack_at(8, row.at_us, len(payload))
                + payload
            ).digest()
            if (
                digest != row.hash
                or prev_hash != line.hash
                or row.version != version
                or row.topic != line.topic
                or row.shard != line.shard
            ):
                self._misfit(line, row, digest == row.hash)
                continue
            line.version, line.hash, line.epoch, line.xid = version, digest, row.epoch, row.xid
            if line.marks is not None:
                line.note_mark(digest, self._duplicates_known)
            if line.foldable:
                self._apply(line, row)
            self.events += 1

    def claim(self, row_hash: bytes) -> Recorded | None:
        """A row that fitted nowhere and carries this hash: where it belongs is known now."""
        lost = self._homeless.pop(row_hash, None)
        if lost is not None and lost.stream in self.lines:
            # Whoever reads that stream from the table meets a row that is not its own.
            self.lines[lost.stream].intact = False
        return lost

    @property
    def has_homeless(self) -> bool:
        """Whether there are rows that fitted nowhere, and whose place may still be found."""
        return bool(self._homeless)

    def add(self, fault: Fault) -> None:
        """Notes a fault; from then on the stream's state is no proof of anything."""
        line = self.lines.get(fault.stream)
        if line is not None:
            line.intact = False
        self.fault_count += 1
        if len(self._faults) < FAULTS_KEPT:
            self._faults.append(fault)

    def faults(self) -> list[Fault]:
        """What was found, in the log's order, at most FAULTS_KEPT; settles what fitted nowhere."""
        for row in self._homeless.values():
            what = "follows no event of its stream, and its hash is not that of its bytes"
            self.add(Fault(FaultKind.CHANGED, row.stream, row.version, what, row.position))
        self._homeless.clear()
        return sorted(self._faults, key=lambda f: (f.position, f.stream, f.version))

    def resume(
        self,
        stream: str,
        version: int,
        head_hash: bytes,
        place: tuple[int, int] = (0, 0),
        state: bytes | None = None,
    ) -> None:
        """Goes on behind a head that was verified before.

        `place`: the epoch and transaction of the head. `state`: as `Line.encoded_state` gave it;
        None where nothing is folded. Raises ValueError for bytes that are no state of the stream.
        """
        line = self._new_line(stream)
        line.version, line.hash = version, head_hash
        line.epoch, line.xid = place
        if line.fold is not None and state is not None:
            line.state = line.fold.decode(state)

    def line_of(self, stream: str) -> Line:
        """The stream's line; a new one at version 0 where nothing was fed."""
        return self.lines.get(stream) or self._new_line(stream)

    def _new_line(self, stream: str) -> Line:
        try:
            topic = topic_of(stream)
            fold = None if self._folds is None else self._folds.of(stream)
        except KeyError:
            topic, fold = NO_TOPIC, None
        genesis = b"" if self._site_id is None else genesis_hash(self._site_id, stream)
        line = Line(stream, genesis, fold, topic)
        if self._duplicates_known:
            line.marks = bytearray()
        self.lines[stream] = line
        return line

    def _new_type(self, kind: tuple[str, str, int]) -> bytes:
        topic, type_name, schema = kind[0].encode(), kind[1].encode(), kind[2]
        parts = (_LENGTH.pack(len(topic)), topic, _LENGTH.pack(len(type_name)), type_name)
        made = b"".join(parts) + _NUMBER.pack(8, schema)
        self._type_parts[kind] = made
        return made

    def _apply(self, line: Line, row: Recorded) -> None:
        assert line.fold is not None
        try:
            event = decode(row)
        except UndecodableEvent as error:
            self._unfoldable(line, row, FaultKind.UNREADABLE, str(error))
            return
        if self._observe is not None:
            self._observe(row, event, line)
        try:
            line.state = line.fold.apply(line.state, event, row.version, row.at_us)
        except (ValueError, AssertionError) as error:
            self._unfoldable(line, row, FaultKind.IMPOSSIBLE, str(error) or row.type)

    def _unfoldable(self, line: Line, row: Recorded, kind: FaultKind, what: str) -> None:
        line.foldable = False
        if line.intact:
            self.add(Fault(kind, row.stream, row.version, what, row.position))

    def _misfit(self, line: Line, row: Recorded, own_hash_fits: bool) -> None:
        """A row that is not simply the next good one: finds what is wrong, goes on if it can."""
        if row.prev_hash == line.hash:
            self._belongs(line, row, own_hash_fits)
        elif not own_hash_fits:
            # Perhaps a row of another stream under a false name: its successor will tell.
            if len(self._homeless) < FAULTS_KEPT:
                self._homeless[row.hash] = row
        elif row.version > line.version:
            self._skips(line, row)
        else:
            self._again(line, row)

    def _belongs(self, line: Line, row: Recorded, own_hash_fits: bool) -> None:
        version = line.version + 1
        kind, what = FaultKind.CHANGED, "its hash is not that of its bytes"
        if row.version != version:
            what = f"the row in its place says version {row.version}"
        elif own_hash_fits and line.topic == NO_TOPIC:
            kind, what = FaultKind.UNREADABLE, "this version knows no such kind of stream"
        elif own_hash_fits and row.topic != line.topic:
            kind, what = FaultKind.MISPLACED, f"its topic is {row.topic}, not {line.topic}"
        elif own_hash_fits:
            kind, what = FaultKind.MISPLACED, f"its shard is {row.shard}, not {line.shard}"
        if not (kind is FaultKind.UNREADABLE and not line.intact):
            self.add(Fault(kind, line.stream, version, what, row.position))
        self._adopt(line, row, version)
        if kind is FaultKind.CHANGED:
            line.doubtful = version

    def _skips(self, line: Line, row: Recorded) -> None:
        """An intact row, not chained to the head: something before it is gone or was changed."""
        version = line.version + 1
        lost = self.claim(row.prev_hash)
        if lost is not None and row.version == version + 1:
            what = f"the row that belongs here says {lost.stream} {lost.version}"
            self.add(Fault(FaultKind.CHANGED, line.stream, version, what, lost.position))
            line.foldable = False
        elif row.version > version:
            what = f"no such row; version {row.version} comes next"
            self.add(Fault(FaultKind.MISSING, line.stream, version, what, row.position))
            self._missing.update(
                (line.stream, gone)
                for gone in range(version, min(row.version, version + FAULTS_KEPT))
            )
            line.foldable = False
        elif line.doubtful != line.version:
            what = "it does not follow the event before it"
            self.add(Fault(FaultKind.CHANGED, line.stream, version, what, row.position))
        self._adopt(line, row, row.version)

    def _again(self, line: Line, row: Recorded) -> None:
        """An intact row for a version that was passed: a duplicate, a fork, or out of order."""
        if self._duplicates_known:
            mark = line.mark_of(row.version)
            if mark is None or mark == row.hash[:_MARK_BYTES]:
                return
            what = "the same version with two hashes"
        elif (line.stream, row.version) in self._missing:
            self._missing.discard((line.stream, row.version))
            return
        else:
            what = "a second row for this version"
        self.add(Fault(FaultKind.TWICE, line.stream, row.version, what, row.position))

    def _adopt(self, line: Line, row: Recorded, version: int) -> None:
        """Goes on from a row although something was wrong, so that one fault is named once."""
        if line.marks is not None and version != line.version + 1:
            line.marks.clear()
        line.version, line.hash, line.epoch, line.xid = version, row.hash, row.epoch, row.xid
        if line.marks is not None:
            line.note_mark(row.hash, self._duplicates_known)
        if line.foldable:
            self._apply(line, row)
        self.events += 1
