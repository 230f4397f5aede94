"""Checks of the tables beside the log: commands (I6), leases (I12), consumers' places (I11).

Reads page by page; every statement is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.kit.postgres import Connection, fetch_all
from backend.ledger.account import ACCOUNT, Account
from projections.audit.books import Books
from projections.audit.report import (
    COMMANDS,
    COMPLETENESS,
    DUPLICATE_PROOF,
    Findings,
)
from projections.comparison import StreamRow
from projections.replay import Progress
from projections.verifying import Verifier
from schemas.event import Recorded
from schemas.ids import kind_of

COMMAND_HOMES: Final = """
SELECT command_id, stream, version FROM commands WHERE command_id = ANY(%(ids)s)
"""
COMMANDS_PAGE: Final = """
SELECT c.command_id, c.stream, c.version, (
    SELECT true FROM event_log e
    WHERE e.stream = c.stream AND e.version = c.version AND e.command_id = c.command_id LIMIT 1)
FROM (SELECT command_id, stream, version FROM commands WHERE command_id > %(after)s
      ORDER BY command_id LIMIT %(count_max)s) c
ORDER BY c.command_id
"""
"""LIMIT keeps each look-up on the index: a join would read the whole log for every page."""
LEASES_OF: Final = """
SELECT stream, request_id::text FROM leases WHERE stream = ANY(%(streams)s)
ORDER BY stream, request_id
"""
LEASES_OF_NOTHING: Final = """
SELECT l.stream, l.request_id::text FROM leases l
WHERE NOT EXISTS (SELECT FROM streams s WHERE s.stream = l.stream)
ORDER BY l.stream, l.request_id LIMIT 1000
"""
CONSUMERS_PAGE: Final = """
SELECT c.consumer, c.stream, c.version, c.hash IS NOT DISTINCT FROM (
    SELECT e.hash FROM event_log e WHERE e.stream = c.stream AND e.version = c.version LIMIT 1)
FROM (SELECT consumer, stream, version, hash FROM consumer_streams
      WHERE (consumer, stream) > (%(consumer)s, %(stream)s)
      ORDER BY consumer, stream LIMIT %(count_max)s) c
ORDER BY c.consumer, c.stream
"""
PAGE_ROWS: Final = 2_000
_NO_ID: Final = UUID(int=0)

Homes = dict[UUID, tuple[str, int]]
"""Command → the stream and version it was recorded at."""


class CommandsCheck:
    """I6: every command of the log is in `commands`, and is recorded under its id once."""

    def __init__(self, findings: Findings) -> None:
        self._findings: Final = findings
        self.last: Final[dict[str, UUID]] = {}
        """Stream → the command of its newest event so far."""

    async def homes(self, connection: Connection, rows: Sequence[Recorded]) -> Homes:
        """Where the commands of these rows were recorded."""
        ids = list({row.command_id for row in rows})
        found = await fetch_all(connection, COMMAND_HOMES, {"ids": ids})
        return {command: (stream, version) for command, stream, version in found}

    def feed(self, rows: Sequence[Recorded], homes: Homes) -> None:
        """Rows in the log's order."""
        last = self.last
        for row in rows:
            begins = last.get(row.stream) != row.command_id
            last[row.stream] = row.command_id
            home = homes.get(row.command_id)
            if home is None:
                self._note(row.stream, row.version, "its command is not in `commands`")
            elif begins and home[0] == row.stream and home[1] != row.version:
                what = f"its command was recorded at version {home[1]} before"
                self._note(row.stream, row.version, what)

    async def recorded(self, connection: Connection, progress: Progress) -> None:
        """The other way round: every row of `commands` names an event of that command."""
        after, done = _NO_ID, 0
        while True:
            arguments = {"after": after, "count_max": PAGE_ROWS}
            found = await fetch_all(connection, COMMANDS_PAGE, arguments)
            for command_id, stream, version, is_there in found:
                if not is_there:
                    self._note(stream, version, f"command {command_id} names no event of its own")
            done += len(found)
            progress("commands", done, done)
            if len(found) < PAGE_ROWS:
                return
            after = found[-1][0]

    def _note(self, stream: str, version: int, what: str) -> None:
        self._findings.add(COMMANDS, stream, version, what)


class AccountsCheck:
    """I1 on stored states, and I12: whoever holds points has someone who answers for them."""

    def __init__(self, findings: Findings, verifier: Verifier, books: Books) -> None:
        self._findings: Final = findings
        self._verifier: Final = verifier
        self._books: Final = books

    async def inspect(self, connection: Connection, rows: Sequence[StreamRow]) -> None:
        """A page of `streams`, inside the transaction that read it."""
        streams = [row.stream for row in rows if kind_of(row.stream) == ACCOUNT.kind]
        found = await fetch_all(connection, LEASES_OF, {"streams": streams})
        leases: dict[str, set[str]] = {}
        for stream, request_id in found:
            leases.setdefault(stream, set()).add(request_id)
        for row in rows:
            if kind_of(row.stream) == ACCOUNT.kind:
                self._account(row, leases.get(row.stream, set()))

    async def strays(self, connection: Connection) -> None:
        """Leases on streams that do not exist."""
        for stream, request_id in await fetch_all(connection, LEASES_OF_NOTHING):
            self._findings.add(COMPLETENESS, stream, 1, f"a lease for {request_id}, and no stream")

    def _account(self, row: StreamRow, leased: set[str]) -> None:
        try:
            account: Account = ACCOUNT.decode(row.state)
        except (ValueError, msgspec.DecodeError):
            # Named by the comparison of states: these bytes are not what the events fold to.
            return
        line = self._verifier.lines.get(row.stream)
        if line is not None and line.intact and line.foldable and line.version == row.version:
            self._books.compare(row.stream, account, row.version)
        for request_id in sorted(account.holds.keys() ^ leased):
            what = f"request {request_id} has a lease, and holds nothing"
            if request_id in account.holds:
                what = f"request {request_id} is open, and nothing will end it: no lease"
            self._findings.add(COMPLETENESS, row.stream, row.version, what)


async def check_consumers(connection: Connection, findings: Findings) -> None:
    """I11: what a consumer took as applied is an event of the log, with the very same hash."""
    arguments: dict[str, Any] = {"consumer": "", "stream": "", "count_max": PAGE_ROWS}
    while True:
        found = await fetch_all(connection, CONSUMERS_PAGE, arguments)
        for consumer, stream, version, is_same in found:
            if not is_same:
                what = f"{consumer} has applied another event for this version"
                findings.add(DUPLICATE_PROOF, stream, version, what)
        if len(found) < PAGE_ROWS:
            return
        arguments |= {"consumer": found[-1][0], "stream": found[-1][1]}
