"""Holds what Kafka carries against the table: the same rows, none more and none less.

Reads only. Chains bind rows, so that equal heads mean equal histories.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from backend.journal.reader import PAGE_ROWS
from backend.kit.kafka import MalformedRecord, read_topics, recorded_of
from backend.kit.postgres import Connection, fetch_all
from projections.audit.report import TOPICS, Findings
from projections.replay import ALL_VERSIONS, Progress, published_place
from projections.verifying import Line, Verifier
from schemas.event import EVENT_TOPICS, Position, Recorded

HASHES: Final = """
SELECT version, hash, epoch, xid::text::bigint, seq FROM event_log
WHERE stream = %(stream)s AND version > %(after)s ORDER BY version LIMIT %(count_max)s
"""


class TopicsCheck:
    """`run` once, when the table's lines are complete."""

    def __init__(
        self, connection: Connection, findings: Findings, site_id: UUID, table: Verifier
    ) -> None:
        self._connection: Final = connection
        self._findings: Final = findings
        self._table: Final = table
        # Eight bytes for each version, so that the first difference can be named.
        self._topics: Final = Verifier(site_id, None, duplicates_known=ALL_VERSIONS)

    async def run(self, bootstrap: str, progress: Progress) -> None:
        """Raises KafkaUnavailable, SiteProblem, psycopg errors."""
        # Read first: everything up to it was in Kafka before it was written down.
        published = await published_place(self._connection)
        rows = 0
        async for batch in read_topics(bootstrap, EVENT_TOPICS):
            found: list[Recorded] = []
            for record in batch:
                try:
                    found.append(recorded_of(record))
                except MalformedRecord as error:
                    place = f"{error.topic}/{error.partition}"
                    what = f"no record of ours: {error.what}"
                    self._findings.add(TOPICS, place, error.offset, what)
            self._topics.feed(found)
            rows += len(batch)
            progress("topics", rows, max(self._table.events, rows))
        broken: set[str] = set()
        for fault in self._topics.faults():
            broken.add(fault.stream)
            self._note(fault.stream, fault.version, fault.what)
        for stream in sorted(self._topics.lines.keys() | self._table.lines.keys()):
            if stream not in broken:
                await self._compare(stream, published)

    async def _compare(self, stream: str, published: Position) -> None:
        table, topics = self._table.lines.get(stream), self._topics.lines.get(stream)
        if table is not None and topics is not None and table.hash == topics.hash:
            return
        if table is not None and not table.intact:
            # Named by the chain's own check, and no measure for anything.
            return
        begin = 0
        if table is not None and topics is not None:
            begin = await self._common(table, topics)
        await self._find_difference(stream, topics, begin, published)

    async def _common(self, table: Line, topics: Line) -> int:
        """A version up to which both say the same; 0 where they differ before the shorter's end."""
        version, digest = table.version, table.hash
        if topics.version < version:
            arguments = {"stream": table.stream, "after": topics.version - 1, "count_max": 1}
            found = await fetch_all(self._connection, HASHES, arguments)
            version, digest = (found[0][0], bytes(found[0][1])) if found else (0, b"")
        mark = topics.mark_of(version) if version > 0 else None
        return version if mark is not None and digest.startswith(mark) else 0

    async def _find_difference(
        self, stream: str, topics: Line | None, begin: int, published: Position
    ) -> None:
        """The first version behind `begin` at which they differ, if they do.

        The table may be further than Kafka, and both further than when the audit began.
        """
        version, reached = begin, 0 if topics is None else topics.version
        while True:
            arguments = {"stream": stream, "after": version, "count_max": PAGE_ROWS}
            page = await fetch_all(self._connection, HASHES, arguments)
            for version, digest, *place in page:
                if topics is None or version > reached:
                    if Position(*place) <= published:
                        self._note(stream, version, "Kafka lacks it")
                    return
                mark = topics.mark_of(version)
                if mark is not None and not bytes(digest).startswith(mark):
                    self._note(stream, version, "Kafka has another event for this version")
                    return
            if len(page) < PAGE_ROWS:
                break
        if reached > version:
            self._note(stream, version + 1, "Kafka has an event that the log does not have")

    def _note(self, stream: str, version: int, what: str) -> None:
        self._findings.add(TOPICS, stream, version, f"in Kafka: {what}")
