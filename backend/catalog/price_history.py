"""Any price version that ever was: versions are immutable, so what was read once is kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from backend.journal.reader import read_stream
from backend.kit.postgres import Pool
from schemas.catalog import PriceSet
from schemas.errors import NotFound
from schemas.ids import price_stream
from schemas.prices import Price, PriceRef
from schemas.registry import decode

KEPT_MAX: Final = 1_000


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
