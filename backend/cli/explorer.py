"""The ledger as it was recorded, event by event, with price, place and seal."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from backend.cli.output import Table, answer, json_option
from backend.cli.record_options import (
    OF_LEDGER,
    account_named,
    before_option,
    limit_option,
    looked_for,
    query_of,
)
from backend.cli.site import Site, with_site
from backend.explorer import LedgerEntry, LedgerPage
from backend.ledger.log_entries import ledger_stream
from backend.ledger.record_filters import entry_filter


@click.command()
@click.option("--user", "name", metavar="NAME", help="Events of this user's account.")
@click.option("--stream", metavar="STREAM", help="Events of this stream, such as account:7.")
@click.option("--event", "event_id", type=click.UUID, metavar="ID", help="One event by its id.")
@looked_for(*OF_LEDGER)
@limit_option
@before_option
@json_option
def ledger(
    name: str | None,
    stream: str | None,
    event_id: UUID | None,
    limit: int,
    before: str | None,
    as_json: bool,
    **looked: Any,
) -> None:
    """Explore the ledger: events as they were recorded, newest first."""
    if name is not None and stream is not None:
        raise click.UsageError("Either --user or --stream.")

    async def work(site: Site) -> LedgerPage:
        from backend.app.exploring import explorer_of

        explorer = explorer_of(site.settings, site.pool, site.clock)
        wanted = await account_named(site, name)
        if stream is not None:
            wanted = ledger_stream(stream)
        if event_id is not None:
            return LedgerPage([await explorer.one(event_id, wanted)], None)
        return await explorer.page(entry_filter(query_of(looked), wanted), limit, before)

    page = with_site(work)
    columns = ("time", "stream", "version", "event", "id", "price", "partition", "seal")
    rows = [_cells(entry) for entry in page.entries]
    answer(as_json, page, Table(columns, rows, "There are no such events."))


def _cells(entry: LedgerEntry) -> tuple[str, ...]:
    price, seal = entry.price, entry.seal
    return (
        entry.at,
        entry.stream,
        str(entry.version),
        entry.type,
        str(entry.event_id),
        "-" if price is None else f"{price.model} {price.version}",
        f"{entry.topic}/{entry.partition}",
        "-" if seal is None else str(seal.number),
    )
