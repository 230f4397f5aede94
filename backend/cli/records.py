"""Commands that show what happened: statements and requests, from the read tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec

from backend.cli.freshness import is_stale
from backend.cli.output import Table, answer, json_option, time_text
from backend.cli.record_options import (
    OF_REQUESTS,
    OF_STATEMENT,
    account_named,
    before_option,
    limit_option,
    looked_for,
    query_of,
)
from backend.cli.site import Site, with_site
from backend.kit.time_text import iso_text, parse_time
from backend.ledger.record_filters import request_filter, statement_filter
from backend.ledger.record_pages import (
    request_cursor,
    request_place,
    statement_cursor,
    statement_place,
)
from backend.ledger.record_texts import movement_of, request_line_of
from backend.ledger.request_log import RequestEntry, list_requests
from backend.ledger.statements import ExactAt, StatementEntry, fold_to, list_statement
from schemas.money import format_points

_Entry = TypeVar("_Entry")

_REQUEST_COLUMNS: Final = (
    "time", "account", "model", "outcome", "points", "in", "out", "ms", "channel", "error",
    "request",
)  # fmt: skip


@click.command()
@click.option("--user", "name", metavar="NAME", help="Whose; else everybody's, by time.")
@click.option("--at", "moment", metavar="TIME",
              help="Only what the user had at that time, held points included.")  # fmt: skip
@looked_for(*OF_STATEMENT)
@limit_option
@before_option
@json_option
def statement(
    name: str | None,
    moment: str | None,
    limit: int,
    before: str | None,
    as_json: bool,
    **looked: Any,
) -> None:
    """Every movement of points, newest first, with the balance after it."""
    if moment is not None:
        _balance_at(name, moment, as_json)
        return

    async def work(site: Site) -> tuple[bool, str | None, list[StatementEntry]]:
        account = await account_named(site, name)
        wanted = statement_filter(query_of(looked), account)
        place = statement_place(before, account)
        stale = await is_stale(site, "statement", account)
        async with site.pool.connection() as connection:
            return stale, account, await list_statement(connection, wanted, limit, place)

    stale, account, entries = with_site(work)
    following = None
    if len(entries) == limit:
        last = entries[-1]
        following = statement_cursor(account, last.at_us, last.account, last.version)
    data = {
        "user": name,
        "entries": [_movement(entry) for entry in entries],
        "next": following,
        "stale": stale,
    }
    whose = "There are" if name is None else f"{name} has"
    answer(as_json, data, _movements(entries, f"{whose} no such movements.", every=name is None))
    _warn_if(stale)


@click.command()
@click.option("--user", "name", metavar="NAME", help="Whose; else everybody's.")
@looked_for(*OF_REQUESTS)
@limit_option
@before_option
@json_option
def requests(
    name: str | None, limit: int, before: str | None, as_json: bool, **looked: Any
) -> None:
    """Every request, newest first: failed and free ones too."""

    async def work(site: Site) -> tuple[bool, list[RequestEntry]]:
        account = await account_named(site, name)
        wanted, place = request_filter(query_of(looked), account), request_place(before)
        stale = await is_stale(site, "requests", account)
        async with site.pool.connection() as connection:
            return stale, await list_requests(connection, wanted, limit, place)

    stale, entries = with_site(work)
    following = None
    if len(entries) == limit:
        following = request_cursor(entries[-1].started_us, entries[-1].request_id)
    data = {
        "requests": [_request(entry) for entry in entries],
        "next": following,
        "stale": stale,
    }
    rows = [_request_cells(entry) for entry in entries]
    answer(as_json, data, Table(_REQUEST_COLUMNS, rows, "There are no such requests."))
    _warn_if(stale)


def _balance_at(name: str | None, moment: str, as_json: bool) -> None:
    """From the log itself: exact, and never behind."""
    if name is None:
        raise click.UsageError("--at needs --user.")
    at_us = parse_time(moment)

    async def work(site: Site) -> ExactAt:
        account = await account_named(site, name)
        assert account is not None
        async with site.pool.connection() as connection:
            return await fold_to(connection, account, at_us)

    found = with_site(work)
    posted, held, available = (
        format_points(amount_upt)
        for amount_upt in (found.posted_upt, found.held_upt, found.available_upt)
    )
    data = {
        "user": name,
        "at": iso_text(at_us),
        "posted": posted,
        "held": held,
        "available": available,
        "version": found.version,
    }
    words = f"{name} had {posted} points at {time_text(at_us)}, {available} of them free to spend."
    answer(as_json, data, words)


def _movements(entries: list[StatementEntry], nothing: str, *, every: bool) -> Table:
    columns = ("time", "what", "points", "balance", "for", "basis", "request")
    rows = [
        (
            time_text(entry.at_us),
            entry.kind,
            format_points(entry.amount_upt),
            format_points(entry.balance_upt),
            _what_for(entry),
            entry.basis or "-",
            entry.request_id or "-",
        )
        for entry in entries
    ]
    if not every:
        return Table(columns, rows, nothing)
    accounts = [(entry.account, *row) for entry, row in zip(entries, rows, strict=True)]
    return Table(("account", *columns), accounts, nothing)


def _what_for(entry: StatementEntry) -> str:
    if entry.plan_level is not None:
        return f"level {entry.plan_level}, {entry.plan_months} months"
    return entry.model or entry.gift_type or entry.grant_kind or entry.source or "-"


def _request_cells(entry: RequestEntry) -> tuple[str, ...]:
    inputs = entry.input_tokens + entry.cached_tokens
    inputs += entry.cache_write_tokens + entry.cache_write_1h_tokens
    return (
        time_text(entry.started_us),
        entry.account,
        entry.model,
        entry.outcome,
        format_points(entry.charged_upt) if entry.plan_item is None else "plan",
        str(inputs),
        str(entry.output_tokens),
        _or_dash(entry.duration_ms, str),
        _or_dash(entry.channel, str),
        entry.error or entry.reason or "-",
        entry.request_id,
    )


def _movement(entry: StatementEntry) -> dict[str, Any]:
    """As the API has it; times in seconds to read and in microseconds to compute with."""
    return {
        **msgspec.structs.asdict(movement_of(entry)),
        "at": time_text(entry.at_us),
        "at_us": entry.at_us,
        "price": _price(entry.price_model, entry.price_version),
    }


def _request(entry: RequestEntry) -> dict[str, Any]:
    """As the API has it; times in seconds to read and in microseconds to compute with."""
    return {
        **msgspec.structs.asdict(request_line_of(entry)),
        "price": _price(entry.price_model, entry.price_version),
        "started": time_text(entry.started_us),
        "started_us": entry.started_us,
        "ended_us": entry.ended_us,
    }


def _price(model: str | None, version: int | None) -> dict[str, Any] | None:
    return None if model is None else {"model": model, "version": version}


def _or_dash(value: _Entry | None, text: Callable[[_Entry], str]) -> str:
    return "-" if value is None else text(value)


def _warn_if(stale: bool) -> None:
    if stale:
        click.echo("suanpan: the newest entries are still on their way.", err=True)
