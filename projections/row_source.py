"""Where a replay's rows come from: the table or Kafka, read while the page before is being folded.

Must not judge rows: what is wrong with them is the verifier's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from backend.journal.reader import PAGE_ROWS, read_page
from backend.kit.kafka import MalformedRecord, read_topics, recorded_of
from backend.kit.postgres import Connection, fetch_all
from schemas.event import EVENT_TOPICS, START, Position, Recorded

AT_POSITION: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log
WHERE epoch = %(epoch)s AND xid = %(xid)s::text::xid8 AND seq = %(seq)s
LIMIT 1000
"""


class RowSource(Protocol):
    """Pages of rows from the beginning to a fixed end; order holds within a stream."""

    def pages(self) -> AsyncGenerator[list[Recorded]]: ...


class TableRows:
    """The log in its one order, behind one position and up to another; each page a transaction.

    Nothing here holds a transaction open: a long one would keep dead rows from being removed.
    """

    def __init__(
        self,
        connection: Connection,
        upto: Position,
        page_rows: int = PAGE_ROWS,
        after: Position = START,
    ) -> None:
        """Rows at `upto` are among them, rows at `after` are not."""
        self._connection: Final = connection
        self._upto: Final = upto
        self._page_rows: Final = page_rows
        self._after: Final = after

    async def pages(self) -> AsyncGenerator[list[Recorded]]:
        after = self._after
        while after < self._upto:
            page = await read_page(self._connection, after, self._page_rows)
            if not page:
                return
            after = page[-1].position
            if after > self._upto:
                page = [row for row in page if row.position <= self._upto]
            page += await self._twins(page)
            if page:
                yield page

    async def _twins(self, page: Sequence[Recorded]) -> list[Recorded]:
        """Rows at the page's last position that stand just behind its end.

        The application never uses a sequence number twice, but nothing else forbids a second row
        under one, and paging by position would skip it.
        """
        if not page:
            return []
        at = page[-1].position
        arguments = {"epoch": at.epoch, "xid": str(at.xid), "seq": at.seq}
        found = await fetch_all(self._connection, AT_POSITION, arguments)
        if len(found) == 1:
            return []
        rows = [Recorded(*values) for values in found]
        for row in page:
            if row.position == at and row in rows:
                rows.remove(row)
        return rows


class KafkaRows:
    """What the topics hold, up to a position of the table's order; duplicates come as they are."""

    def __init__(
        self, bootstrap: str, upto: Position, topics: Sequence[str] = EVENT_TOPICS
    ) -> None:
        self._bootstrap: Final = bootstrap
        self._upto: Final = upto
        self._topics: Final = tuple(topics)
        self.malformed: list[MalformedRecord] = []

    async def pages(self) -> AsyncGenerator[list[Recorded]]:
        """Raises KafkaUnavailable, SiteProblem."""
        async for batch in read_topics(self._bootstrap, self._topics):
            rows: list[Recorded] = []
            for record in batch:
                try:
                    row = recorded_of(record)
                except MalformedRecord as error:
                    self.malformed.append(error)
                    continue
                if row.position <= self._upto:
                    rows.append(row)
            if rows:
                yield rows


class MemoryRows:
    """Rows that are there already, in pages of a given size."""

    def __init__(self, rows: Sequence[Recorded], page_rows: int = PAGE_ROWS) -> None:
        self._rows: Final = rows
        self._page_rows: Final = page_rows

    async def pages(self) -> AsyncGenerator[list[Recorded]]:
        for begin in range(0, len(self._rows), self._page_rows):
            yield list(self._rows[begin : begin + self._page_rows])


async def read_ahead(source: RowSource) -> AsyncGenerator[list[Recorded]]:
    """Every page, while the next one is fetched; raises what reading raises."""
    async with aclosing(source.pages()) as pages:
        coming = asyncio.ensure_future(anext(pages, None))
        try:
            while (page := await coming) is not None:
                coming = asyncio.ensure_future(anext(pages, None))
                # The question is on its way before we are busy.
                await asyncio.sleep(0)
                yield page
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def each_page(source: RowSource, feed: Callable[[list[Recorded]], None]) -> None:
    """Feeds every page while the next one is fetched; raises what reading or feeding raises."""
    async with aclosing(read_ahead(source)) as pages:
        async for page in pages:
            feed(page)
