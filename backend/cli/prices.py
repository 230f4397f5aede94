"""Commands about what models cost: set by hand, from a list, and what was set before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from backend.catalog.price_history import PriceVersion
from backend.catalog.price_text import parse_tier, parse_window, price_data, price_words
from backend.cli.durations import parse_begin
from backend.cli.output import Table, answer, json_option, time_text
from backend.cli.price_lists import accept_list, import_list
from backend.cli.site import Site, with_site
from schemas.errors import BadRequest, NotFound
from schemas.money import MoneyError, parse_price_per_1k, parse_price_per_unit
from schemas.prices import Free, PerCall, PerToken, PerUnit, Price, Units

_RATES: Final = ("input", "output", "cached_input", "cache_write", "cache_write_1h")
_UNITS: Final = ("image", "second", "character", "search")
_HOW: Final = (
    "Give --per-1k-input with --per-1k-output, or --per-call, or --free, or a price per --image, "
    "--second, --character or --search."
)


@click.group()
def price() -> None:
    """What models cost."""


price.add_command(import_list)
price.add_command(accept_list)


def _rate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Points per 1,000 tokens. The short names say the same."""
    for name, words in reversed((
        ("input", "Points per 1,000 input tokens."),
        ("output", "Points per 1,000 output tokens."),
        ("cached-input", "Points per 1,000 cached input tokens; else as input."),
        ("cache-write", "Points per 1,000 tokens written to a cache for 5 minutes; else as input."),
        ("cache-write-1h", "The same for an hour; else as for 5 minutes."),
    )):  # fmt: skip
        short = "cached" if name == "cached-input" else name
        option = click.option(
            f"--per-1k-{name}", f"--{short}", name.replace("-", "_"), metavar="P", help=words
        )
        command = option(command)
    return command


def _unit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name in reversed(_UNITS):
        option = click.option(f"--{name}", name, metavar="P", help=f"Points per {name}.")
        command = option(command)
    return command


@price.command("set")
@click.argument("model_name", metavar="MODEL", required=False)
@click.option("--model", help="The same as MODEL.")
@_rate_options
@click.option(
    "--tier",
    "tiers",
    multiple=True,
    metavar="ABOVE:IN:OUT[:CACHED[:WRITE[:WRITE_1H]]]",
    help="Points per 1,000 tokens of a request with more than ABOVE input tokens.",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    metavar="HH:MM-HH:MM@+HH:MM=FACTOR",
    help="A factor for requests let in at that time of day, at that offset from UTC.",
)
@_unit_options
@click.option("--per-call", help="Points per call.")
@click.option("--free", is_flag=True, help="Calls cost nothing.")
@click.option("--from", "begin", metavar="TIME", help="2027-01-31 or an ISO 8601 time; else now.")
@json_option
def set_price(
    model_name: str | None,
    model: str | None,
    tiers: tuple[str, ...],
    windows: tuple[str, ...],
    per_call: str | None,
    free: bool,
    begin: str | None,
    as_json: bool,
    **amounts: str | None,
) -> None:
    """Set what MODEL costs: a new version, which old charges do not change with."""
    if (model_name is None) == (model is None):
        raise click.UsageError("Name the model, once.")
    name = model_name or model or ""
    try:
        wanted = _wanted(amounts, tiers, windows, per_call, free=free)
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error

    async def work(site: Site) -> dict[str, Any]:
        begin_us = 0 if begin is None else parse_begin(begin, site.clock.now_us())
        ref = await site.catalog.set_price(name, wanted, begin_us)
        done = {"model": ref.model, "version": ref.version, "price": price_data(wanted)}
        return done | ({"from": time_text(begin_us)} if begin_us else {})

    done = with_site(work)
    since = f" from {done['from']} on" if "from" in done else ""
    words = f"{name} costs {price_words(wanted)}{since} (version {done['version']})."
    answer(as_json, done, words)


@price.command("history")
@click.argument("model", metavar="MODEL")
@json_option
def show_history(model: str, as_json: bool) -> None:
    """Show every price that MODEL ever had, the oldest first."""

    async def work(site: Site) -> tuple[list[PriceVersion], int]:
        return await site.catalog.prices.versions(model), site.clock.now_us()

    versions, now_us = with_site(work)
    if not versions:
        raise NotFound(f"{model!r} never had a price.")
    begun = [one.version for one in versions if one.begins_us <= now_us]
    counts = begun[-1] if begun else None
    rows = [
        (
            str(one.version),
            time_text(one.begins_us),
            "now" if one.version == counts else "",
            price_words(one.fact.price),
            "by hand" if one.fact.source is None else one.fact.source.list_name,
            one.actor or "-",
            time_text(one.at_us),
        )
        for one in versions
    ]
    columns = ("version", "from", "counts", "price", "source", "accepted by", "set at")
    data = {"model": model, "versions": [_described(one, counts) for one in versions]}
    answer(as_json, data, Table(columns, rows))


def _wanted(
    amounts: dict[str, str | None],
    tiers: tuple[str, ...],
    windows: tuple[str, ...],
    per_call: str | None,
    *,
    free: bool,
) -> Price:
    """Raises UsageError, MoneyError, BadRequest."""
    units = Units(*(_per_unit(amounts[name]) for name in _UNITS))
    by_token = any(amounts[name] is not None for name in _RATES) or bool(tiers or windows)
    by_unit = any(amounts[name] is not None for name in _UNITS)
    if [by_token or by_unit, per_call is not None, free].count(True) != 1:
        raise click.UsageError(_HOW)
    if free:
        return Free()
    if per_call is not None:
        return PerCall(parse_price_per_unit(per_call))
    if not by_token:
        return PerUnit(units)
    if amounts["input"] is None or amounts["output"] is None:
        raise click.UsageError("Give --per-1k-input and --per-1k-output together.")
    optional = (amounts[name] for name in _RATES[2:])
    return PerToken(
        parse_price_per_1k(amounts["input"]),
        parse_price_per_1k(amounts["output"]),
        *(None if text is None else parse_price_per_1k(text) for text in optional),
        tiers=tuple(parse_tier(text) for text in tiers),
        windows=tuple(parse_window(text) for text in windows),
        units=units,
    )


def _per_unit(text: str | None) -> int:
    return 0 if text is None else parse_price_per_unit(text)


def _described(one: PriceVersion, counts: int | None) -> dict[str, Any]:
    source = one.fact.source
    return {
        "version": one.version,
        "from": time_text(one.begins_us),
        "counts": one.version == counts,
        "price": price_data(one.fact.price),
        "source": None
        if source is None
        else {
            "list": source.list_name,
            "currency": source.currency,
            "points_per_unit": source.points_per_unit,
        },
        "accepted_by": one.actor,
        "set_at": time_text(one.at_us),
    }
