"""What an incremental audit asks of rows it does not read: each stream has them all, and its head.

A stream that fails is read whole, so that the place is named as a full audit would name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from backend.journal.fold import Folds
from backend.journal.reader import PAGE_ROWS, read_stream
from backend.kit.postgres import Connection, fetch_all
from projections.audit.checkpoint import SavedStream
from projections.audit.report import CHAIN, Findings
from projections.replay import Progress
from projections.verifying import Fault, FaultKind, Verifier
from schemas.event import Position

ROWS_AND_HEADS: Final = """
SELECT h.stream,
    (SELECT count(*) FROM event_log e WHERE e.stream = h.stream AND e.version <= h.version),
    (SELECT e.hash FROM event_log e WHERE e.stream = h.stream AND e.version = h.version LIMIT 1)
FROM unnest(%(streams)s::text[], %(versions)s::bigint[]) AS h(stream, version)
"""
PAGE_STREAMS: Final = 500


class OldRowsCheck:
    """`faults`: what was found in streams that were read whole."""

    def __init__(
        self, connection: Connection, findings: Findings, site_id: UUID, folds: Folds
    ) -> None:
        self._connection: Final = connection
        self._findings: Final = findings
        self._site_id: Final = site_id
        self._folds: Final = folds
        self.faults: Final[list[Fault]] = []

    async def run(self, streams: Sequence[SavedStream], progress: Progress) -> None:
        """`streams`: where they stood at the checkpoint."""
        for begin in range(0, len(streams), PAGE_STREAMS):
            page = streams[begin : begin + PAGE_STREAMS]
            for one in await self._suspects(page):
                await self._read_whole(one)
            progress("old rows", begin + len(page), len(streams))

    async def _suspects(self, page: Sequence[SavedStream]) -> list[SavedStream]:
        arguments = {
            "streams": [one.stream for one in page],
            "versions": [one.version for one in page],
        }
        found = {
            stream: (count, None if digest is None else bytes(digest))
            for stream, count, digest in await fetch_all(
                self._connection, ROWS_AND_HEADS, arguments
            )
        }
        return [one for one in page if found[one.stream] != (one.version, one.hash)]

    async def _read_whole(self, saved: SavedStream) -> None:
        verifier, version = Verifier(self._site_id, self._folds), 0
        while version < saved.version:
            rows = await read_stream(self._connection, saved.stream, version + 1)
            verifier.feed([row for row in rows if row.version <= saved.version])
            if len(rows) < PAGE_ROWS:
                break
            version = rows[-1].version
        line = verifier.line_of(saved.stream)
        if line.version < saved.version:
            what = "no such row; the stream was sealed with more"
            place = Position(saved.epoch, saved.xid, 0)
            verifier.add(Fault(FaultKind.MISSING, saved.stream, line.version + 1, what, place))
        faults = verifier.faults()
        self.faults.extend(faults)
        if not faults:
            what = "its hash is not the one that was sealed: it was rewritten here or before"
            self._findings.add(CHAIN, saved.stream, saved.version, what)
