"""The what-if: history under other prices. Reads only."""
# The modules that do the work load Kafka's client; only this command pays for it.

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from backend.cli.output import Table, answer, json_option, progress_bar, time_text
from backend.cli.site import Site, with_site
from schemas.errors import BadRequest
from schemas.ids import PersonId, id_of
from schemas.money import format_points

if TYPE_CHECKING:
    from projections.reprice.prices import WhatIf
    from projections.reprice.report import RepriceReport, Sums
    from projections.reprice.run import KnownPrices

RECORDED: Final = "current"
AFFECTED_MAX: Final = 10
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
_AGO: Final = re.compile(r"([0-9]{1,6})([mhdwy])")
_SPANS: Final = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CSV_COLUMNS: Final = (
    "account", "model", "settlements", "charged", "shortfall", "due", "what_if", "difference",
    "cost", "margin", "margin_what_if", "plan_calls", "plan_list", "plan_list_what_if",
)  # fmt: skip


@click.command()
@click.option("--prices", "prices", required=True, metavar="FILE",
              help="Prices as JSON or TOML; `current`: the recorded versions.")  # fmt: skip
@click.option("--since", default="1970-01-01", metavar="TIME",
              help="2027-01-31, an ISO 8601 time, or 30d for so long ago.")  # fmt: skip
@click.option("--until", default="0m", metavar="TIME", help="Up to, not including; default: now.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, writable=True, path_type=Path),
              help="Also write one line per account and model.")  # fmt: skip
@json_option
@click.pass_context
def reprice(
    context: click.Context,
    prices: str,
    since: str,
    until: str,
    csv_file: Path | None,
    as_json: bool,
) -> None:
    """Compute history again under other prices; changes nothing.

    Exit 1 where a settlement is not what its usage costs at its own price version.
    """

    async def work(site: Site) -> tuple[RepriceReport, dict[str, str | None]]:
        from projections.reprice.run import RepriceAsked, run_reprice

        now_us = site.clock.now_us()
        since_us, until_us = parse_moment(since, now_us), parse_moment(until, now_us)
        if since_us >= until_us:
            raise BadRequest("--since is before --until.")
        asked = RepriceAsked(site.database.url, since_us, until_us, now_us)
        with progress_bar("reprice") as advance:

            def progress(phase: str, done: int, total: int) -> None:
                advance(done, total)

            report = await run_reprice(
                asked, lambda known: _chosen(prices, known), progress=progress
            )
        return report, await _names(site, report)

    report, names = with_site(work)
    if csv_file is not None:
        _write_csv(csv_file, report)
    answer(as_json, _data(report, names), _table(report))
    if not as_json:
        _say_more(report, names)
    context.exit(1 if report.anomalies_count else 0)


def parse_moment(text: str, now_us: int) -> int:
    """Microseconds since 1970 of `2027-01-31` (its start, UTC), an ISO 8601 time, or `30d` ago.

    A time without an offset is UTC. Raises BadRequest.
    """
    try:
        ago = _AGO.fullmatch(text.strip())
        if ago:
            return now_us - int(ago[1]) * _SPANS[ago[2]] // timedelta(microseconds=1)
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            f"{text[:40]!r} is no time: write 2027-01-31, 2027-01-31T18:00+08:00, or 30d for ago."
        ) from error


def _chosen(prices: str, known: KnownPrices) -> WhatIf:
    from projections.reprice.prices import CURRENT, parse_what_if

    if prices == RECORDED:
        return CURRENT
    path = Path(prices)
    data = read_file(path)
    return parse_what_if(data, toml=path.suffix.lower() == ".toml", current=known.now)


def read_file(path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """A file that the operator names. Raises BadRequest."""
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > bytes_max:
        raise BadRequest(f"{path} is larger than {bytes_max >> 20} MiB.")
    return data


async def _names(site: Site, report: RepriceReport) -> dict[str, str | None]:
    """Clear names of the users most affected; None for one who was forgotten."""
    return {
        stream: await site.identity.name_of(PersonId(int(id_of(stream))))
        for stream, _ in report.most_affected(AFFECTED_MAX)
    }


def _data(report: RepriceReport, names: dict[str, str | None]) -> dict[str, Any]:
    return {
        "since": time_text(report.since_us),
        "until": time_text(report.until_us),
        "total": _sums(report.total),
        "models": {name: _sums(sums) for name, sums in report.models.items()},
        "users": [
            {"account": stream, "user": names[stream], **_sums(sums)}
            for stream, sums in report.most_affected(AFFECTED_MAX)
        ],
        "anomalies_count": report.anomalies_count,
        "anomalies": [
            {
                "request_id": one.request_id,
                "event_id": str(one.event_id),
                "account": one.stream,
                "version": one.version,
                "recorded": format_points(one.recorded_upt),
                "recomputed": _points(one.recomputed_upt),
                "what": one.what,
            }
            for one in report.anomalies
        ],
    }


def _sums(sums: Sums) -> dict[str, Any]:
    return {
        "settlements": sums.settlements,
        "charged": format_points(sums.charged_upt),
        "shortfall": format_points(sums.shortfall_upt),
        "due": format_points(sums.due_upt),
        "what_if": format_points(sums.what_if_upt),
        "difference": format_points(sums.difference_upt),
        "cost": format_points(sums.cost_upt),
        "margin": format_points(sums.margin_upt),
        "margin_what_if": format_points(sums.margin_what_if_upt),
        "plan": {
            "calls": sums.plan_calls,
            "list_value": format_points(sums.plan_list_upt),
            "list_value_what_if": format_points(sums.plan_list_what_if_upt),
            "cost": format_points(sums.plan_cost_upt),
        },
    }


def _table(report: RepriceReport) -> Table:
    columns = ("model", "settlements", "due", "what if", "difference", "cost", "margin",
               "margin what if", "by plan", "list value")  # fmt: skip
    rows = [_row(name, sums) for name, sums in report.models.items()]
    if rows:
        rows.append(_row("all", report.total))
    return Table(columns, rows, "Nothing was settled in that time.")


def _row(name: str, sums: Sums) -> Sequence[str]:
    return (
        name,
        str(sums.settlements),
        format_points(sums.due_upt),
        format_points(sums.what_if_upt),
        format_points(sums.difference_upt),
        format_points(sums.cost_upt),
        format_points(sums.margin_upt),
        format_points(sums.margin_what_if_upt),
        str(sums.plan_calls),
        format_points(sums.plan_list_upt),
    )


def _say_more(report: RepriceReport, names: dict[str, str | None]) -> None:
    affected = report.most_affected(AFFECTED_MAX)
    if affected:
        click.echo("\nUsers most affected:")
    for stream, sums in affected:
        who = names[stream] or stream
        paid, would = format_points(sums.due_upt), format_points(sums.what_if_upt)
        click.echo(f"  {who}: {paid} → {would} ({format_points(sums.difference_upt)})")
    if report.anomalies_count:
        click.echo(f"\n{report.anomalies_count} settlements do not recompute:")
    for one in report.anomalies:
        recomputed = _points(one.recomputed_upt) or "no such price version"
        click.echo(
            f"  request {one.request_id}, event {one.event_id} ({one.stream} {one.version}): "
            f"recorded {format_points(one.recorded_upt)}, recomputed {recomputed}"
        )


def _write_csv(path: Path, report: RepriceReport) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_CSV_COLUMNS)
            for (stream, model), sums in report.rows.items():
                data = _sums(sums)
                plan = data.pop("plan")
                values = [data[column] for column in _CSV_COLUMNS[2:11]]
                lists = (plan["calls"], plan["list_value"], plan["list_value_what_if"])
                writer.writerow((stream, model, *values, *lists))
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}.") from error


def _points(amount_upt: int | None) -> str | None:
    return None if amount_upt is None else format_points(amount_upt)
