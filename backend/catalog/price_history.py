"""Any price version that ever was: versions are immutable, so what was read once is kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final
from uuid import UUID

import msgspec

from backend.journal.reader import PAGE_ROWS, find_command, read_stream
from backend.kit.postgres import Connection, Pool
from schemas.catalog import PriceListAccepted, PriceSet
from schemas.errors import NotFound
from schemas.ids import price_stream
from schemas.prices import Price, PriceRef
from schemas.registry import decode

KEPT_MAX: Final = 1_000


class PriceVersion(msgspec.Struct, frozen=True):
    """One version, as it was recorded."""

    version: int
    at_us: int
    fact: PriceSet
    actor: str | None
    """Who accepted the list that it is from; None: it was set by hand."""

    @property
    def begins_us(self) -> int:
        """From when it counts, unless a newer one does."""
        return max(self.at_us, self.fact.effective_us)


class PriceHistory:
    def __init__(self, pool: Pool) -> None:
        self._pool: Final = pool
        self._kept: OrderedDict[PriceRef, Price] = OrderedDict()

    async def price_at(self, model: str, version: int) -> Price:
        """The price a model had at a version. Raises NotFound, psycopg errors, UndecodableEvent."""
        ref = PriceRef(model, version)
        price = self._kept.get(ref)
        if price is None:
            price = await self._read(ref)
            self._kept[ref] = price
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return price

    async def _read(self, ref: PriceRef) -> Price:
        async with self._pool.connection() as connection:
            rows = await read_stream(connection, price_stream(ref.model), ref.version, 1)
        if not rows or rows[0].version != ref.version:
            raise NotFound(f"There is no price version {ref.version} of {ref.model!r}.")
        event = decode(rows[0])
        assert isinstance(event, PriceSet), "a price stream holds prices only"
        return event.price

    async def versions(self, model: str) -> list[PriceVersion]:
        """Every price a model ever had, the oldest first; empty for a model without one.

        Raises psycopg errors, UndecodableEvent.
        """
        found: list[PriceVersion] = []
        actors: dict[UUID, str | None] = {}
        async with self._pool.connection() as connection:
            while rows := await read_stream(connection, price_stream(model), len(found) + 1):
                for row in rows:
                    fact = decode(row)
                    assert isinstance(fact, PriceSet), "a price stream holds prices only"
                    if row.command_id not in actors:
                        listed = fact.source is not None
                        actors[row.command_id] = (
                            await _actor(connection, row.command_id) if listed else None
                        )
                    actor = actors[row.command_id]
                    found.append(PriceVersion(row.version, row.at_us, fact, actor))
                if len(rows) < PAGE_ROWS:
                    break
        return found


async def _actor(connection: Connection, command_id: UUID) -> str | None:
    """Who took a price from a list: the list's own event, in the same unit, says so."""
    found = await find_command(connection, command_id)
    if found is None or not found[1]:
        return None
    fact = decode(found[1][0])
    return fact.actor if isinstance(fact, PriceListAccepted) else None
