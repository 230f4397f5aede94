"""Replay: folds the whole log again, from the table or from Kafka, and compares it with `streams`.

Reads only, and decides nothing: two replays to one position give one digest, however they were cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from struct import Struct
from typing import Final

import msgspec

from backend.journal.fold import Folds
from backend.journal.reader import PAGE_ROWS, head
from backend.kit.kafka import MalformedRecord
from backend.kit.postgres import Connection, fetch_one
from projections.comparison import Site, StreamsComparison, connect_for_reading, site_row
from projections.row_source import KafkaRows, RowSource, TableRows, each_page
from projections.verifying import Fault, Line, Verifier
from schemas.event import START, Position, Recorded

PUBLISHED: Final = "SELECT epoch, xid::text::bigint, seq FROM publisher"
DIFFERENCES_MAX: Final = 100
ALL_VERSIONS: Final = 2**40

_LENGTH: Final = Struct(">I")
_VERSION: Final = Struct(">q")

Progress = Callable[[str, int, int], None]
"""`progress(phase, done, total)`; total 0 where it is not known."""


class Difference(msgspec.Struct, frozen=True):
    """The first thing wrong at a stream, named by the version it is wrong at."""

    stream: str
    version: int
    what: str


class ReplayResult(msgspec.Struct, frozen=True):
    """`differences`: at most DIFFERENCES_MAX, in the log's order."""

    events: int
    events_per_s: int
    """Verified and folded, reading included."""
    digest: str
    """Hex; see `digest_of`."""
    differences: tuple[Difference, ...]
    position: Position


def digest_of(lines: Iterable[Line]) -> str:
    """SHA-256 over all streams sorted by name, in hex.

    Each: name (4-byte length first), version (int64), encoded state (4-byte length first).
    """
    digest = sha256()
    for line in sorted(lines, key=lambda line: line.stream):
        name, state = line.stream.encode(), line.encoded_state()
        digest.update(_LENGTH.pack(len(name)) + name + _VERSION.pack(line.version))
        digest.update(_LENGTH.pack(len(state)) + state)
    return digest.hexdigest()


def no_progress(phase: str, done: int, total: int) -> None:
    """For whoever does not want to see it."""


class Folding:
    """One pass of a source through a verifier, counted and timed."""

    def __init__(self, verifier: Verifier, total: int, progress: Progress) -> None:
        """`total`: about how many rows there are; the last sequence number is near enough."""
        self._verifier: Final = verifier
        self._total: Final = total
        self._progress: Final = progress
        self._rows = 0
        self.seconds = 0.0

    async def run(self, source: RowSource) -> None:
        begin = time.perf_counter()
        await each_page(source, self._feed)
        self.seconds = time.perf_counter() - begin

    def _feed(self, page: list[Recorded]) -> None:
        self._verifier.feed(page)
        self._rows += len(page)
        self._progress("fold", self._rows, max(self._total, self._rows))

    @property
    def events_per_s(self) -> int:
        return round(self._verifier.events / self.seconds) if self.seconds > 0 else 0


async def replay_table(
    database_url: str,
    folds: Folds,
    *,
    progress: Progress = no_progress,
    page_rows: int = PAGE_ROWS,
) -> ReplayResult:
    """Replays the table up to what readers may see when it starts. Raises psycopg errors."""
    async with await connect_for_reading(database_url, "suanpan replay") as connection:
        site, upto = await site_row(connection), await head(connection)
        verifier = Verifier(site.site_id, folds)
        source = TableRows(connection, upto, page_rows)
        return await _replay(connection, site, upto, folds, verifier, source, progress)


async def replay_kafka(
    database_url: str,
    bootstrap: str,
    folds: Folds,
    *,
    progress: Progress = no_progress,
) -> ReplayResult:
    """Replays the topics up to the publisher's place and compares with the table as of there.

    All rows up to that place were acknowledged by Kafka before it was written down, so one that
    is missing is a difference. Raises KafkaUnavailable, SiteProblem, psycopg errors.
    """
    async with await connect_for_reading(database_url, "suanpan replay") as connection:
        site, upto = await site_row(connection), await published_place(connection)
        verifier = Verifier(site.site_id, folds, duplicates_known=ALL_VERSIONS)
        source = KafkaRows(bootstrap, upto)
        result = await _replay(connection, site, upto, folds, verifier, source, progress)
        odd = tuple(_malformed(error) for error in source.malformed)
        return msgspec.structs.replace(
            result, differences=(odd + result.differences)[:DIFFERENCES_MAX]
        )


async def _replay(
    connection: Connection,
    site: Site,
    upto: Position,
    folds: Folds,
    verifier: Verifier,
    source: RowSource,
    progress: Progress,
) -> ReplayResult:
    folding = Folding(verifier, upto.seq, progress)
    await folding.run(source)
    comparison = StreamsComparison(connection, verifier, folds, site, upto)
    total = len(verifier.lines)
    await comparison.run(done=lambda count: progress("compare", count, max(total, count)))
    faults = [*verifier.faults(), *comparison.faults]
    progress("digest", 0, 1)
    digest = digest_of(verifier.lines.values())
    progress("digest", 1, 1)
    return ReplayResult(
        verifier.events,
        folding.events_per_s,
        digest,
        tuple(difference_of(fault) for fault in faults[:DIFFERENCES_MAX]),
        upto,
    )


def difference_of(fault: Fault) -> Difference:
    return Difference(fault.stream, fault.version, fault.what)


async def published_place(connection: Connection) -> Position:
    """Every row up to here is in Kafka; START where nothing was published."""
    row = await fetch_one(connection, PUBLISHED)
    return START if row is None else Position(*row)


def _malformed(error: MalformedRecord) -> Difference:
    place = f"{error.topic}/{error.partition}"
    return Difference(place, error.offset, f"no record of ours: {error.what}")
