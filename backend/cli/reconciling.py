"""Holds settled usage against a provider's exported bill. Reads only."""
# The modules that do the work load Kafka's client; only this command pays for it.

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from backend.cli.output import Table, answer, json_option, progress_bar, time_text
from backend.cli.repricing import read_file
from backend.cli.site import Site, with_site
from schemas.errors import BadRequest
from schemas.ids import ChannelId
from schemas.money import format_points

if TYPE_CHECKING:
    from projections.reconcile.bill import Bill, Used
    from projections.reconcile.compare import Finding, Reconciliation
    from projections.reconcile.run import Provider

EXIT_UNEXPLAINED: Final = 2
PROVIDERS: Final = ("openai", "anthropic", "deepseek")
BILL_BYTES_MAX: Final = 64 * 1024 * 1024


@click.command()
@click.option("--provider", "provider", required=True,
              type=click.Choice(PROVIDERS), help="Whose bill.")  # fmt: skip
@click.argument("files", nargs=-1, required=True, metavar="FILE...",
                type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--channel", "names", multiple=True, metavar="NAME",
              help="Only this channel; default: all that lead to the provider.")  # fmt: skip
@click.option("--time-zone", "time_zone", metavar="TZ",
              help="Whose days the export means where it does not say.")  # fmt: skip
@click.option("--costs", "costs", type=click.Path(dir_okay=False, path_type=Path),
              help="What the provider takes per million tokens, as JSON or TOML.")  # fmt: skip
@json_option
@click.pass_context
def reconcile(
    context: click.Context,
    provider: str,
    files: tuple[Path, ...],
    names: tuple[str, ...],
    time_zone: str | None,
    costs: Path | None,
    as_json: bool,
) -> None:
    """Compare settled usage with a provider's exported bill (one or more FILEs of it).

    Exit 0 where every difference is explained, 2 where one is not.
    """

    async def work(site: Site) -> Reconciliation:
        from projections.reconcile.run import Provider, ReconcileAsked, run_reconcile
        from projections.reconcile.tariff import NO_TARIFF, parse_tariff

        whose = Provider(provider)
        bill = _bill(whose, files, time_zone)
        tariff = NO_TARIFF
        if costs is not None:
            tariff = parse_tariff(read_file(costs), toml=costs.suffix.lower() == ".toml")
        channels = await _channels(site, whose, names)
        asked = ReconcileAsked(site.database.url, channels, tariff)
        with progress_bar("reconcile") as advance:

            def progress(phase: str, done: int, total: int) -> None:
                advance(done, total)

            return await run_reconcile(asked, bill, progress=progress)

    result = with_site(work)
    answer(as_json, _data(result), _table(result))
    if not as_json:
        unexplained = sum(not finding.explained for finding in result.findings)
        click.echo(f"{len(result.findings)} lines, {unexplained} of them unexplained.")
    context.exit(0 if result.explained else EXIT_UNEXPLAINED)


def _bill(provider: Provider, paths: tuple[Path, ...], time_zone: str | None) -> Bill:
    from projections.reconcile.bill import BillFile
    from projections.reconcile.run import parse_bill

    files = [BillFile(path.name, read_file(path, BILL_BYTES_MAX)) for path in paths]
    return parse_bill(provider, files, time_zone)


async def _channels(site: Site, provider: Provider, names: tuple[str, ...]) -> frozenset[ChannelId]:
    """The channels that are named, else those whose address is the provider's.

    Raises NotFound, Conflict, BadRequest.
    """
    from projections.reconcile.run import HOSTS

    if names:
        return frozenset([(await site.catalog.find_channel(name)).channel for name in names])
    host = HOSTS[provider]
    found = frozenset(
        entry.channel
        for entry in await site.catalog.list_channels()
        if _leads_to(entry.state.settings.base_url, host)
    )
    if not found:
        raise BadRequest(f"No channel leads to {host}: say which one does with --channel.")
    return found


def _leads_to(base_url: str, host: str) -> bool:
    asked = urlsplit(base_url).hostname or ""
    return asked == host or asked.endswith(f".{host}")


def _data(result: Reconciliation) -> dict[str, Any]:
    return {
        "explained": result.explained,
        "currency": result.currency or None,
        "lines": [_line(finding) for finding in result.findings],
    }


def _line(finding: Finding) -> dict[str, Any]:
    return {
        "from": time_text(finding.period.from_us),
        "to": time_text(finding.period.to_us),
        "model": finding.model,
        "ours": _used(finding.ours),
        "theirs": _used(finding.theirs),
        "difference": _used(finding.difference),
        "reasons": list(finding.reasons),
        "explained": finding.explained,
        "request_ids": list(finding.request_ids),
        "charged": format_points(finding.charged_upt),
        "cost": _decimal(finding.cost),
        "expected_cost": _decimal(finding.expected_cost),
    }


def _used(used: Used) -> dict[str, int | None]:
    return {
        "requests": used.requests,
        "uncached_input": used.uncached,
        "cached_input": used.cached,
        "cache_write": used.cache_write,
        "output": used.output,
    }


def _decimal(number: Decimal | None) -> str | None:
    """Plain, trailing zeros trimmed."""
    if number is None:
        return None
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _table(result: Reconciliation) -> Table:
    columns = ("from", "model", "requests", "input", "cached", "written", "output", "cost",
               "reason", "requests most likely involved")  # fmt: skip
    rows = [
        (
            time_text(finding.period.from_us),
            finding.model,
            _cell(finding, "requests"),
            _cell(finding, "uncached"),
            _cell(finding, "cached"),
            _cell(finding, "cache_write"),
            _cell(finding, "output"),
            _decimal(finding.cost) or "-",
            ", ".join(reason.replace("_", " ") for reason in finding.reasons),
            " ".join(finding.request_ids) or "-",
        )
        for finding in result.findings
    ]
    return Table(columns, rows, "The bill and the log are both empty.")


def _cell(finding: Finding, name: str) -> str:
    """`ours (+difference)`."""
    ours, more = getattr(finding.ours, name), getattr(finding.difference, name)
    if ours is None:
        return "-"
    return f"{ours} ({more:+d})" if more else str(ours)
