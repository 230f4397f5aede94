"""The ledger as an explorer shows it: each event with the price it was charged at and its seal.

Reads only. Who may see which stream is decided by whoever calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.catalog.price_history import PriceHistory
from backend.journal.seal import Seal
from backend.kit.postgres import Pool
from backend.kit.time_text import iso_text
from backend.ledger.log_entries import find_entry, list_entries, list_stream_entries
from backend.ledger.record_filters import EntryFilter
from backend.ledger.record_pages import log_cursor, log_position, version_of
from backend.ledger.record_texts import LedgerLine, ledger_line_of
from schemas.errors import NotFound
from schemas.event import Recorded
from schemas.ledger import HoldSettled, PointsHeld, RequestRefused, UsageLate
from schemas.prices import Price
from schemas.registry import decode


class CoveringSeal(msgspec.Struct, frozen=True):
    """The first seal that vouches for an event; `root` and `signature` in hex."""

    number: int
    made_at: str
    events: int
    root: str
    signature: str
    public_key: str


SealOf = Callable[[Recorded], Awaitable[CoveringSeal | None]]
"""None: no seal covers it yet, or none can be read here."""


class PricedBy(msgspec.Struct, frozen=True):
    """The price version that an event names, and what it says; None: it is no longer known."""

    model: str
    version: int
    price: Price | None


class LedgerEntry(LedgerLine, frozen=True):
    price: PricedBy | None
    seal: CoveringSeal | None


class LedgerPage(msgspec.Struct, frozen=True):
    """`next`: where the next page goes on; null at the end. Where the seals lie in Kafka, they are
    looked up for one entry at a time, and are null here.
    """

    entries: list[LedgerEntry]
    next: str | None


async def no_seal(row: Recorded) -> CoveringSeal | None:
    """For whoever has no seals to look into."""
    return None


class Explorer:
    """One per process. Raises psycopg errors, BadRequest for a wrong cursor."""

    def __init__(
        self,
        pool: Pool,
        prices: PriceHistory,
        seal_of: SealOf = no_seal,
        listed_seal_of: SealOf = no_seal,
    ) -> None:
        """`listed_seal_of` is asked for each entry of a page: one that takes long is for single
        entries alone."""
        self._pool: Final = pool
        self._prices: Final = prices
        self._seal_of: Final = seal_of
        self._listed_seal_of: Final = listed_seal_of

    async def page(self, wanted: EntryFilter, limit: int, before: str | None) -> LedgerPage:
        """Newest first: of one stream by version, of all in the log's order."""
        async with self._pool.connection() as connection:
            if wanted.stream is None:
                rows = await list_entries(connection, wanted, limit, log_position(before))
            else:
                rows = await list_stream_entries(connection, wanted, limit, version_of(before))
        following = None
        if len(rows) == limit:
            last = rows[-1]
            is_one = wanted.stream is not None
            following = str(last.version) if is_one else log_cursor(last.position)
        return LedgerPage(await self._entries(rows, self._listed_seal_of), following)

    async def one(self, event_id: UUID, stream: str | None) -> LedgerEntry:
        """The event of this id, in `stream` or anywhere in the ledger. Raises NotFound."""
        async with self._pool.connection() as connection:
            row = await find_entry(connection, event_id, stream)
        if row is None:
            raise NotFound("There is no such entry.")
        return (await self._entries([row], self._seal_of))[0]

    async def _entries(self, rows: Sequence[Recorded], seal_of: SealOf) -> list[LedgerEntry]:
        found: list[LedgerEntry] = []
        for row in rows:
            line: dict[str, Any] = msgspec.structs.asdict(ledger_line_of(row))
            price, seal = await self._price_of(row), await seal_of(row)
            found.append(LedgerEntry(**line, price=price, seal=seal))
        return found

    async def _price_of(self, row: Recorded) -> PricedBy | None:
        event = decode(row)
        if not isinstance(event, PointsHeld | HoldSettled | UsageLate | RequestRefused):
            return None
        ref = event.price
        try:
            price = await self._prices.price_at(ref.model, ref.version)
        except NotFound:
            price = None
        return PricedBy(ref.model, ref.version, price)


def covering(seal: Seal) -> CoveringSeal:
    return CoveringSeal(
        seal.number,
        iso_text(seal.made_at_us),
        seal.events,
        seal.root.hex(),
        seal.signature.hex(),
        seal.public_key.hex(),
    )
