"""Commands about price lists: reviewed into a file, then accepted from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from backend.catalog.checks import parse_models
from backend.catalog.price_list import LIST_BYTES_MAX, PriceList, read_list
from backend.catalog.price_lists import BUILTIN, AcceptedPrices, builtin_list
from backend.catalog.price_proposal import (
    PROPOSAL_BYTES_MAX,
    Proposal,
    ProposedModel,
    Status,
    read_proposal,
    write_proposal,
)
from backend.catalog.price_text import price_data, price_words
from backend.cli.durations import parse_begin
from backend.cli.output import Table, answer, json_option, time_text
from backend.cli.site import Site, with_site
from schemas.errors import BadRequest, NotFound

ACTOR = "cli"
_MODELS = click.option("--models", default="", help="Only these, as a,b; else every model.")


@click.command("import")
@click.argument("file", metavar="FILE|builtin")
@click.option("--cny-per-usd", metavar="RATE", help="What a dollar is worth, for lists in USD.")
@_MODELS
@click.option(
    "--out",
    default="price-proposal.json",
    show_default=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the review is written.",
)
@json_option
def import_list(file: str, cny_per_usd: str | None, models: str, out: Path, as_json: bool) -> None:
    """Review a price list beside the prices in force. Nothing is set: `price accept` does that."""
    data = builtin_list() if file == BUILTIN else _read(Path(file), LIST_BYTES_MAX)
    name = BUILTIN if file == BUILTIN else Path(file).stem

    async def work(site: Site) -> Proposal:
        now_us = site.clock.now_us()
        prices: PriceList = read_list(data, name, cny_per_usd, now_us)
        return await site.catalog.price_lists.review(prices, parse_models(models), now_us)

    proposal = with_site(work)
    _write(out, write_proposal(proposal))
    counts = Counter(entry.status for entry in proposal.models)
    summary = {status.value: counts[status] for status in Status}
    summary["unsupported"] = len(proposal.unsupported)
    if as_json:
        answer(as_json, _reviewed(proposal, out, summary), "")
        return
    columns = ("model", "what", "change", "price in points", "remarks")
    answer(as_json, None, Table(columns, _rows(proposal), "The list names no model."))
    words = ", ".join(f"{count} {what}" for what, count in summary.items())
    click.echo(
        f"{words}. Nothing was set: `suanpan price accept {out}` sets what is new or changed."
    )


@click.command("accept")
@click.argument("proposal_file", type=click.Path(path_type=Path))
@_MODELS
@click.option("--from", "begin", metavar="TIME", help="2027-01-31 or an ISO 8601 time; else now.")
@json_option
def accept_list(proposal_file: Path, models: str, begin: str | None, as_json: bool) -> None:
    """Set the prices that `price import` wrote to PROPOSAL_FILE, exactly as they were reviewed."""
    proposal = read_proposal(_read(proposal_file, PROPOSAL_BYTES_MAX))

    async def work(site: Site) -> AcceptedPrices:
        begin_us = 0 if begin is None else parse_begin(begin, site.clock.now_us())
        lists = site.catalog.price_lists
        return await lists.accept(proposal, parse_models(models), begin_us, ACTOR)

    done = with_site(work)
    data = {"list": proposal.list_name, "set": done.models, "as_before": done.as_before}
    words = f"{len(done.models)} prices are set."
    if done.as_before:
        words += f" {len(done.as_before)} were so before."
    answer(as_json, data, words)


def _rows(proposal: Proposal) -> list[tuple[str, ...]]:
    rows = [
        (
            entry.model,
            entry.status.value,
            entry.change,
            ", then ".join(_dated_words(entry)),
            "; ".join(entry.remarks),
        )
        for entry in proposal.models
    ]
    return rows + [(one.model, "unsupported", "", "", one.reason) for one in proposal.unsupported]


def _dated_words(entry: ProposedModel) -> list[str]:
    return [
        price_words(one.price)
        + (f" from {time_text(one.effective_us)}" if one.effective_us else "")
        for one in entry.prices
    ]


def _reviewed(proposal: Proposal, out: Path, summary: dict[str, int]) -> dict[str, Any]:
    return {
        "proposal": str(out),
        "digest": proposal.digest,
        "list": proposal.list_name,
        "as_of": proposal.as_of,
        "currency": proposal.currency,
        "points_per_unit": proposal.points_per_unit,
        "summary": summary,
        "models": [
            {
                "model": entry.model,
                "status": entry.status,
                "base_version": entry.base_version,
                "change": entry.change,
                "prices": [
                    {
                        "price": price_data(one.price),
                        "from": time_text(one.effective_us) if one.effective_us else None,
                    }
                    for one in entry.prices
                ],
                "remarks": entry.remarks,
            }
            for entry in proposal.models
        ],
        "unsupported": proposal.unsupported,
    }


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {str(path)!r}.") from error
    except OSError as error:
        raise BadRequest(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    if len(data) > bytes_max:
        raise BadRequest(f"{str(path)!r} has more than {bytes_max} bytes.")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BadRequest(f"{str(path)!r} cannot be written: {error.strerror}.") from error
