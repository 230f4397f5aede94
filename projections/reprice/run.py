"""Reads the log for a what-if: price versions first, then one pass. Reads only.

Every page is its own short transaction on a read-only connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from backend.catalog.price import PRICE, price_at
from backend.journal.fold import Folds
from backend.journal.reader import PAGE_ROWS, head, read_stream
from backend.journal.view import states_of_kind
from backend.kit.postgres import Connection
from projections.comparison import connect_for_reading
from projections.replay import Progress, no_progress
from projections.reprice.fold import Repricing
from projections.reprice.prices import Versions, WhatIf
from projections.reprice.report import RepriceReport
from projections.row_source import TableRows, each_page
from schemas.catalog import PriceSet
from schemas.event import Recorded
from schemas.ids import id_of
from schemas.prices import Price, PriceRef
from schemas.registry import decode

PRICE_FOLDS: Final = Folds([PRICE])


class KnownPrices(msgspec.Struct, frozen=True):
    versions: Versions
    now: dict[str, Price]
    """By model, what is in force; where nothing is yet, the newest."""


class RepriceAsked(msgspec.Struct, frozen=True):
    """[since, until), microseconds since 1970; `now_us` says which prices are in force."""

    database_url: str
    since_us: int
    until_us: int
    now_us: int
    page_rows: int = PAGE_ROWS


async def run_reprice(
    asked: RepriceAsked,
    choose: Callable[[KnownPrices], WhatIf],
    *,
    progress: Progress = no_progress,
) -> RepriceReport:
    """`choose` makes the what-if from the prices that there are; what it raises is raised.

    Raises psycopg errors, UndecodableEvent.
    """
    async with await connect_for_reading(asked.database_url, "suanpan reprice") as connection:
        # The end first: a price that a settlement names was set before it.
        upto = await head(connection)
        known = await load_prices(connection, asked.now_us)
        fold = Repricing(known.versions, choose(known), asked.since_us, asked.until_us)
        done = 0

        def feed(page: list[Recorded]) -> None:
            nonlocal done
            fold.feed(page)
            done += len(page)
            progress("fold", done, max(upto.seq, done))

        await each_page(TableRows(connection, upto, asked.page_rows), feed)
        return fold.finish()


async def load_prices(connection: Connection, now_us: int) -> KnownPrices:
    """Every price version of every model."""
    versions: dict[PriceRef, Price] = {}
    now: dict[str, Price] = {}
    async for stream, version, state in states_of_kind(connection, PRICE_FOLDS, PRICE.kind):
        model = id_of(stream)
        found = price_at(state, version, now_us)
        price = state.price if found is None else found.price
        if price is not None:
            now[model] = price
        from_version = 1
        while rows := await read_stream(connection, stream, from_version):
            for row in rows:
                event = decode(row)
                assert isinstance(event, PriceSet), "a price stream holds prices only"
                versions[PriceRef(model, row.version)] = event.price
            from_version = rows[-1].version + 1
    return KnownPrices(versions, now)
