"""A log written fast: the rows that appends would leave, made in memory and copied in.

Hashes, states and ids are those of real appends; only the road into the tables is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from struct import Struct
from typing import Any, Final
from uuid import UUID

import psycopg

from backend.folds import ALL_FOLDS
from backend.journal.chain import genesis_hash
from backend.journal.commands import Standing
from backend.ledger.account import Account
from schemas.event import Recorded, shard_of, topic_of
from schemas.registry import encode

COPY_EVENTS: Final = """
COPY event_log (epoch, xid, event_id, command_id, shard, version, schema, at, prev_hash, hash,
    topic, type, stream, payload) FROM STDIN (FORMAT binary)
"""
COPY_COMMANDS: Final = """
COPY commands (command_id, version, stream, body_hash) FROM STDIN (FORMAT binary)
"""
COPY_STREAMS: Final = """
COPY streams (version, hash, last_xid, stream, state) FROM STDIN (FORMAT binary)
"""
COPY_LEASES: Final = "COPY leases (request_id, stream, until) FROM STDIN"
TRANSACTION: Final = "SELECT pg_current_xact_id()::text::bigint"
LATER: Final = "SELECT clock_timestamp() + interval '30 seconds'"
CHUNK_EVENTS: Final = 20_000

_PREFIX: Final = b"\x00\x00\x00\x08suanpan1\x00\x00\x00\x20"
_LENGTH: Final = Struct(">I")
_IDS: Final = Struct(">IqI16sI16s")
_NUMBER: Final = Struct(">Iq")
_AT: Final = Struct(">IqI")
_EVENT: Final = Struct(">hiiiqi16si16sihiqihiqi32si32s")
_COMMAND: Final = Struct(">hi16siq")
_STREAM: Final = Struct(">hiqi32siq")
_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END: Final = b"\xff\xff"
_EPOCH: Final = 1
_YEAR_2000_US: Final = 946_684_800_000_000
"""PostgreSQL counts from there."""


def _text(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


class Line:
    """One stream: where it stands, and the parts of its rows that repeat."""

    __slots__ = ("fold", "hash", "name", "shard", "state", "stream", "topic", "version", "xid")

    def __init__(self, site_id: UUID, stream: str) -> None:
        self.stream: Final = stream
        self.name: Final = _text(stream)
        self.topic: Final = topic_of(stream)
        self.shard: Final = shard_of(stream)
        self.fold: Final = ALL_FOLDS.of(stream)
        self.version = 0
        self.hash = genesis_hash(site_id, stream)
        self.state: Any = self.fold.empty
        self.xid = 0

    @property
    def standing(self) -> Standing:
        return Standing(self.stream, self.version, self.state)


class FastJournal:
    """`land` takes what was decided; whoever wants the rows says what becomes of them."""

    def __init__(self, site_id: UUID) -> None:
        self._site_id: Final = site_id
        self._types: Final[dict[tuple[str, str], bytes]] = {}
        self._copied: Final[dict[tuple[str, str], bytes]] = {}
        self.lines: Final[dict[str, Line]] = {}
        self.events = 0

    def line(self, stream: str) -> Line:
        found = self.lines.get(stream)
        if found is None:
            found = self.lines[stream] = Line(self._site_id, stream)
        return found

    def land(
        self,
        command_id: int,
        home: Line,
        decided: Sequence[tuple[Line, Any]],
        at_us: int,
        event_ids: Sequence[int],
    ) -> None:
        """Applies and records events of one command, in order."""
        command = command_id.to_bytes(16, "big")
        self._command(command, home)
        for (line, event), number in zip(decided, event_ids, strict=True):
            self._event(line, event, command, number.to_bytes(16, "big"), at_us)
        self.events += len(decided)

    def _event(self, line: Line, event: Any, command: bytes, event_id: bytes, at_us: int) -> None:
        version = line.version + 1
        line.state = line.fold.apply(line.state, event, version, at_us)
        payload, prev, name = encode(event), line.hash, type(event).__name__
        # The same bytes as `chain.event_hash`, put together from parts that repeat.
        kind = self._types.get((line.topic, name)) or self._new_type(line.topic, name, event.SCHEMA)
        line.version = version
        line.hash = sha256(
            _PREFIX
            + prev
            + line.name
            + _IDS.pack(8, version, 16, event_id, 16, command)
            + kind
            + _AT.pack(8, at_us, len(payload))
            + payload
        ).digest()
        self._row(line, name, event.SCHEMA, event_id, command, at_us, payload, prev)

    def _new_type(self, topic: str, name: str, schema: int) -> bytes:
        self._copied[topic, name] = _text(topic) + _text(name)
        made = self._types[topic, name] = _text(topic) + _text(name) + _NUMBER.pack(8, schema)
        return made

    def _command(self, command: bytes, home: Line) -> None:
        """A command that is recorded at the next version of its home."""

    def _row(
        self,
        line: Line,
        name: str,
        schema: int,
        event_id: bytes,
        command: bytes,
        at_us: int,
        payload: bytes,
        prev: bytes,
    ) -> None:
        """The stream's newest event."""


class MemoryJournal(FastJournal):
    """Keeps the rows."""

    def __init__(self, site_id: UUID) -> None:
        super().__init__(site_id)
        self.rows: Final[list[Recorded]] = []

    def _row(
        self,
        line: Line,
        name: str,
        schema: int,
        event_id: bytes,
        command: bytes,
        at_us: int,
        payload: bytes,
        prev: bytes,
    ) -> None:
        seq = len(self.rows) + 1
        self.rows.append(
            Recorded(
                _EPOCH, seq, seq, UUID(bytes=event_id), UUID(bytes=command), line.topic,
                line.shard, line.stream, line.version, name, schema, at_us, payload, prev,
                line.hash,
            )
        )  # fmt: skip


class CopiedJournal(FastJournal):
    """Copies chunks of rows, each a transaction; one is written while the next one is made."""

    def __init__(self, site_id: UUID, url: str) -> None:
        super().__init__(site_id)
        self._connections: Final = [psycopg.connect(url), psycopg.connect(url)]
        self._thread: Final = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._writing: Future[None] | None = None
        self._rows: list[bytes] = []
        self._commands: list[bytes] = []
        self._xid = self._begin()

    def _command(self, command: bytes, home: Line) -> None:
        if len(self._rows) >= CHUNK_EVENTS:
            self._write()
            self._xid = self._begin()
        self._commands.append(
            _COMMAND.pack(4, 16, command, 8, home.version + 1) + home.name + bytes(4)
        )

    def _row(
        self,
        line: Line,
        name: str,
        schema: int,
        event_id: bytes,
        command: bytes,
        at_us: int,
        payload: bytes,
        prev: bytes,
    ) -> None:
        line.xid = self._xid
        self._rows.append(
            _EVENT.pack(
                14, 4, _EPOCH, 8, self._xid, 16, event_id, 16, command, 2, line.shard,
                8, line.version, 2, schema, 8, at_us - _YEAR_2000_US, 32, prev, 32, line.hash,
            )
            + self._copied[line.topic, name]
            + line.name
            + _LENGTH.pack(len(payload))
            + payload
        )  # fmt: skip

    def close(self) -> None:
        """Writes what is left, the streams as they stand, and leases of what is still open."""
        self._write()
        self._done()
        connection = self._connections[0]
        lines = [line for line in self.lines.values() if line.version > 0]
        rows = [_stream_row(line) for line in sorted(lines, key=lambda line: line.stream)]
        _copy(connection, COPY_STREAMS, rows)
        self._lease(connection)
        connection.commit()
        for one in self._connections:
            one.close()
        self._thread.shutdown()

    def _lease(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(LATER).fetchone()
        assert row is not None
        with connection.cursor() as cursor, cursor.copy(COPY_LEASES) as copy:
            for line in self.lines.values():
                if isinstance(line.state, Account):
                    for request_id in line.state.holds:
                        copy.write_row((request_id, line.stream, row[0]))

    def _begin(self) -> int:
        """The id of the next chunk's transaction."""
        row = self._connections[0].execute(TRANSACTION).fetchone()
        assert row is not None
        return row[0]

    def _write(self) -> None:
        """Hands the chunk to the thread; waits for the one before."""
        self._done()
        connection = self._connections.pop(0)
        self._connections.append(connection)
        rows, self._rows = self._rows, []
        commands, self._commands = self._commands, []

        def write() -> None:
            _copy(connection, COPY_EVENTS, rows)
            _copy(connection, COPY_COMMANDS, commands)
            connection.commit()

        self._writing = self._thread.submit(write)

    def _done(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _stream_row(line: Line) -> bytes:
    state = line.fold.encode(line.state)
    fixed = _STREAM.pack(5, 8, line.version, 32, line.hash, 8, line.xid)
    return fixed + line.name + _LENGTH.pack(len(state)) + state


def _copy(connection: psycopg.Connection[Any], statement: Any, rows: Sequence[bytes]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(_COPY_HEAD + b"".join(rows) + _COPY_END)
