"""Commands that show what happened: statements and requests, from the read tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from backend.cli.freshness import is_stale
from backend.cli.output import Table, answer, json_option, time_text
from backend.cli.site import Site, with_site
from backend.ledger.statements import (
    NEWEST_REQUEST,
    NEWEST_VERSION,
    RequestEntry,
    StatementEntry,
    list_requests,
    list_statement,
)
from schemas.event import LEDGER
from schemas.ids import account_stream
from schemas.money import format_points

LIMIT_MAX: Final = 1_000

_Entry = TypeVar("_Entry")
_LIMIT = click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=50, show_default=True, help="How many."
)


@click.command()
@click.option("--user", "name", required=True, metavar="NAME", help="Whose.")
@_LIMIT
@click.option(
    "--before", type=int, default=NEWEST_VERSION, help="Only older ones: `next` of a page."
)
@json_option
def statement(name: str, limit: int, before: int, as_json: bool) -> None:
    """Every movement of a user's points, newest first, with the balance after it."""

    async def work(site: Site) -> tuple[bool, list[StatementEntry]]:
        account = account_stream(await site.identity.require(name))
        stale = await is_stale(site, "statement", account)
        async with site.pool.connection() as connection:
            return stale, await list_statement(connection, account, limit, before)

    stale, entries = with_site(work)
    data = {
        "user": name,
        "entries": [_movement(entry) for entry in entries],
        "next": entries[-1].version if len(entries) == limit else None,
        "stale": stale,
    }
    rows = [
        (
            time_text(entry.at_us),
            entry.kind,
            format_points(entry.amount_upt),
            format_points(entry.balance_upt),
            entry.model or entry.grant_kind or "-",
            entry.basis or "-",
            entry.request_id or "-",
        )
        for entry in entries
    ]
    columns = ("time", "what", "points", "balance", "for", "basis", "request")
    answer(as_json, data, Table(columns, rows, f"{name} has no movements yet."))
    _warn_if(stale)


@click.command()
@click.option("--user", "name", metavar="NAME", help="Whose; else everybody's.")
@_LIMIT
@click.option("--before", default=NEWEST_REQUEST, help="Only older ones: `next` of a page.")
@json_option
def requests(name: str | None, limit: int, before: str, as_json: bool) -> None:
    """Every request, newest first: failed and free ones too."""

    async def work(site: Site) -> tuple[bool, list[RequestEntry]]:
        account = None if name is None else account_stream(await site.identity.require(name))
        stale = await is_stale(site, "requests", account)
        async with site.pool.connection() as connection:
            return stale, await list_requests(connection, account, limit, before)

    stale, entries = with_site(work)
    data = {
        "requests": [_request(entry) for entry in entries],
        "next": entries[-1].request_id if len(entries) == limit else None,
        "stale": stale,
    }
    rows = [
        (
            time_text(entry.started_us),
            entry.account,
            entry.model,
            entry.outcome,
            format_points(entry.charged_upt),
            str(entry.input_tokens + entry.cached_tokens + entry.cache_write_tokens),
            str(entry.output_tokens),
            _or_dash(entry.duration_ms, str),
            _or_dash(entry.channel, str),
            entry.error or entry.reason or "-",
            entry.request_id,
        )
        for entry in entries
    ]
    columns = (
        "time", "account", "model", "outcome", "points", "in", "out", "ms", "channel", "error",
        "request",
    )  # fmt: skip
    answer(as_json, data, Table(columns, rows, "There are no requests yet."))
    _warn_if(stale)


def _movement(entry: StatementEntry) -> dict[str, Any]:
    return {
        "at": time_text(entry.at_us),
        "at_us": entry.at_us,
        "kind": entry.kind,
        "amount": format_points(entry.amount_upt),
        "balance": format_points(entry.balance_upt),
        "request_id": entry.request_id,
        "model": entry.model,
        "price": _price(entry.price_model, entry.price_version),
        "basis": entry.basis,
        "swept": entry.swept,
        "grant_kind": entry.grant_kind,
        "actor": entry.actor,
        "explains_event_id": entry.explains_event_id,
        "event_id": entry.event_id,
        "version": entry.version,
        "topic": LEDGER,
        "partition": entry.shard,
    }


def _request(entry: RequestEntry) -> dict[str, Any]:
    return {
        "request_id": entry.request_id,
        "account": entry.account,
        "outcome": entry.outcome,
        "model": entry.model,
        "upstream_model": entry.upstream_model,
        "channel": entry.channel,
        "key": entry.key,
        "purpose": entry.purpose,
        "streamed": entry.streamed,
        "points": format_points(entry.charged_upt),
        "held": format_points(entry.held_upt),
        "shortfall": format_points(entry.shortfall_upt),
        "missing": format_points(entry.missing_upt),
        "price": _price(entry.price_model, entry.price_version),
        "basis": entry.basis,
        "swept": entry.swept,
        "input_tokens": entry.input_tokens,
        "cached_tokens": entry.cached_tokens,
        "cache_write_tokens": entry.cache_write_tokens,
        "output_tokens": entry.output_tokens,
        "reasoning_tokens": entry.reasoning_tokens,
        "status": entry.status,
        "error": entry.error,
        "reason": entry.reason,
        "attempts": entry.attempts,
        "started": time_text(entry.started_us),
        "started_us": entry.started_us,
        "ended_us": entry.ended_us,
        "duration_ms": entry.duration_ms,
        "first_token_ms": entry.first_token_ms,
    }


def _price(model: str | None, version: int | None) -> dict[str, Any] | None:
    return None if model is None else {"model": model, "version": version}


def _or_dash(value: _Entry | None, text: Callable[[_Entry], str]) -> str:
    return "-" if value is None else text(value)


def _warn_if(stale: bool) -> None:
    if stale:
        click.echo("suanpan: the newest entries are still on their way.", err=True)
