"""The one pass over the log: chains, folds, books, commands and seals, row by row.

From the beginning or from a checkpoint; keeps what the next checkpoint needs while it passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from importlib.metadata import version as version_of
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.journal.fold import Folds
from backend.kit.postgres import Connection
from projections.audit.books_saved import ResumableBooks
from projections.audit.checkpoint import (
    Anchor,
    Checkpoint,
    FullAudit,
    SavedStream,
    UnusableCheckpoint,
)
from projections.audit.report import Findings
from projections.audit.seals import Chain
from projections.audit.tables import CommandsCheck
from projections.comparison import Site
from projections.replay import Progress
from projections.row_source import TableRows, read_ahead
from projections.sealed_log import Reach, SealedLog
from projections.verifying import Line, Verifier
from schemas.event import START, Position, Recorded

SOFTWARE: Final = version_of("suanpan")
"""States are what this version folds: another one's are not taken up."""


class _StoodLine(msgspec.Struct, frozen=True, gc=False):
    """A stream at a row; its state is immutable, so it is shared and encoded only when kept."""

    line: Line
    version: int
    hash: bytes
    epoch: int
    xid: int
    state: Any
    command_id: UUID

    def saved(self) -> SavedStream:
        fold = self.line.fold
        assert fold is not None, "a stream of no known kind is a fault"
        state = fold.encode(self.state)
        return SavedStream(
            self.line.stream, self.version, self.hash, self.epoch, self.xid, self.command_id, state
        )


class _Standing(msgspec.Struct, frozen=True):
    """How everything stood at a row."""

    position: Position
    events: int
    lines: list[_StoodLine]
    books: bytes


class Passing:
    """`resume` at most once, then `seal_with` each chain, then `run`."""

    def __init__(self, site_id: UUID, folds: Folds, findings: Findings) -> None:
        self.books: Final = ResumableBooks(findings)
        self.verifier: Final = Verifier(site_id, folds, self.books.observe)
        self.commands: Final = CommandsCheck(findings)
        self._sealed: Final[list[SealedLog]] = []
        self._anchor: Anchor | None = None
        self._reach: Reach | None = None
        self._before: Checkpoint | None = None
        self._position = START
        self._standing: _Standing | None = None

    def resume(self, since: Checkpoint) -> None:
        """Stands where the checkpoint was made. Raises UnusableCheckpoint."""
        if since.software != SOFTWARE:
            raise UnusableCheckpoint("another version of Suanpan made the checkpoint")
        try:
            self.books.resume(since.books)
            for one in since.streams:
                place = one.epoch, one.xid
                self.verifier.resume(one.stream, one.version, one.hash, place, one.state)
                self.commands.last[one.stream] = one.command_id
        except (ValueError, msgspec.DecodeError) as error:
            raise UnusableCheckpoint("the checkpoint is of another kind") from error
        self._before, self._position = since, since.position

    def seal_with(self, chain: Chain) -> None:
        """Holds the log against one more chain of seals; the last one anchors the checkpoint."""
        counted = {} if self._before is None else self._before.counted
        self._sealed.append(chain.sealed)
        self._anchor = chain.anchor
        self._reach = None if chain.anchor is None else Reach(chain.anchor.seal, counted)

    async def run(
        self,
        connection: Connection,
        beside: Connection,
        upto: Position,
        page_rows: int,
        progress: Progress,
    ) -> None:
        """Reads on one connection what is looked up on the other. Raises psycopg errors."""
        source = TableRows(connection, upto, page_rows, self._position)
        rows = 0 if self._before is None else self._before.events
        async with aclosing(read_ahead(source)) as pages:
            async for page in pages:
                homes = asyncio.ensure_future(self.commands.homes(beside, page))
                # The question is on its way before we are busy.
                await asyncio.sleep(0)
                try:
                    self._page(page)
                finally:
                    found = await homes
                self.commands.feed(page, found)
                rows += len(page)
                progress("fold", rows, max(upto.seq, rows))
        if self._standing is None:
            self._stand()
        self.books.finish()
        for sealed in self._sealed:
            sealed.finish()

    def checkpoint(self, site: Site, full: FullAudit, made_at_us: int) -> Checkpoint | None:
        """What was remembered at the anchor; None where there is no seal, or nothing was read."""
        standing, reach = self._standing, self._reach
        if standing is None or reach is None or self._anchor is None or not standing.events:
            return None
        return Checkpoint(
            software=SOFTWARE,
            site_id=site.site_id,
            epoch=site.epoch,
            position=standing.position,
            events=standing.events,
            anchor=self._anchor,
            counts=[(topic, shard, rows) for (topic, shard), rows in reach.counted.items()],
            streams=[line.saved() for line in standing.lines],
            books=standing.books,
            full=full,
            made_at_us=made_at_us,
        )

    def _page(self, page: Sequence[Recorded]) -> None:
        beyond = None
        if self._standing is None and self._reach is not None:
            beyond = self._reach.first_beyond(page)
        if beyond is not None:
            self._feed(page[:beyond])
            self._stand(page[:beyond])
            page = page[beyond:]
        self._feed(page)

    def _feed(self, rows: Sequence[Recorded]) -> None:
        if not rows:
            return
        self.verifier.feed(rows)
        for sealed in self._sealed:
            sealed.feed(rows)
        self._position = rows[-1].position

    def _stand(self, rows: Sequence[Recorded] = ()) -> None:
        """Remembers how things are; `rows` were fed, but their commands were not looked at yet."""
        if self._anchor is None:
            return
        last = self.commands.last | {row.stream: row.command_id for row in rows}
        lines = self.verifier.lines.values()
        self._standing = _Standing(
            position=self._position,
            events=self.verifier.events + (0 if self._before is None else self._before.events),
            # A stream whose rows are all unsound has none; such an audit keeps no checkpoint.
            lines=[
                _StoodLine(
                    line,
                    line.version,
                    line.hash,
                    line.epoch,
                    line.xid,
                    line.state,
                    last[line.stream],
                )
                for line in lines
                if line.stream in last
            ],
            books=self.books.saved(),
        )
