"""Commands for the auditor and the repairer: audit, replay, rebuild, parked streams."""
# The modules that do the work load Kafka's client; only these commands pay for it.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from backend.cli.freshness import reads_kafka
from backend.cli.output import Table, answer, json_option, progress_bar, time_text, yes_no
from backend.cli.site import Site, with_site
from backend.folds import ALL_FOLDS
from backend.journal.parking import Parked, PoisonEvent, list_parked, retry_parked
from backend.kit.clock import SystemRandomness
from backend.kit.settings import Settings
from projections.declared import PROJECTIONS, find_projection, live_consumers
from schemas.errors import NotFound, SiteProblem

if TYPE_CHECKING:
    from projections.audit.report import AuditReport
    from projections.rebuild import Progress, Rebuilt
    from projections.replay import ReplayResult

_SHOWN_MAX: Final = 20


@click.command()
@click.option("--since-seal", is_flag=True,
              help="Read only what was written since the last audit's newest seal.")  # fmt: skip
@json_option
@click.pass_context
def audit(context: click.Context, since_seal: bool, as_json: bool) -> None:
    """Check every chain, state, table and sum of the site; exit 1 where one is wrong.

    A sound audit keeps a checkpoint in `<data>/audit`. With --since-seal the next one begins
    there, and says what it therefore does not prove.
    """

    async def work(site: Site) -> AuditReport:
        from projections.audit.run import AuditAsked, run_audit

        asked = AuditAsked(
            site.database.url,
            site.settings.data_dir,
            site.settings.kafka.bootstrap_servers,
            since_seal=since_seal,
        )
        with progress_bar("audit") as advance:

            def progress(phase: str, done: int, total: int) -> None:
                advance(done, total)

            return await run_audit(
                asked,
                ALL_FOLDS,
                progress=progress,
                note=_say,
                clock=site.clock,
                randomness=SystemRandomness(),
            )

    report = with_site(work)
    rows = [
        (
            check.id,
            yes_no(check.ok),
            str(check.violations),
            ""
            if check.first is None
            else f"{check.first.stream} {check.first.version}: {check.first.what}",
        )
        for check in report.checks
    ]
    answer(as_json, report, Table(("check", "ok", "violations", "first"), rows))
    if not as_json:
        for line in _covered(report):
            click.echo(line)
    context.exit(0 if report.ok else 1)


def _covered(report: AuditReport) -> list[str]:
    """What was read, how fast, and what was not."""
    coverage = report.coverage
    lines = [f"{report.events} events in {report.streams} streams, digest {report.digest}."]
    speed = f"{coverage.seconds:.1f} s, {coverage.events_per_s} events a second"
    if coverage.kind == "full":
        lines.append(f"All of them were read and hashed in {speed}.")
    else:
        lines.append(f"{coverage.events_read} of them, behind seal {coverage.seal}, in {speed}.")
        lines.append(f"All were last read {time_text(coverage.full_audit_at_us)}. Not proven:")
        lines += [f"  {what}" for what in coverage.unproven]
    if coverage.checkpoint is not None:
        lines.append(f"Checkpoint {coverage.checkpoint} is kept for --since-seal.")
    elif report.ok:
        lines.append("No checkpoint was kept: there is no seal yet (`suanpan seal`).")
    return lines


@click.command()
@click.option("--from", "source", type=click.Choice(["table", "kafka"]), default="table",
              show_default=True, help="Which copy of the log.")  # fmt: skip
@json_option
@click.pass_context
def replay(context: click.Context, source: str, as_json: bool) -> None:
    """Fold the whole log again and compare; exit 1 where something differs."""

    async def work(site: Site) -> ReplayResult:
        from projections.replay import replay_kafka, replay_table

        with progress_bar("replay") as advance:

            def progress(phase: str, done: int, total: int) -> None:
                advance(done, total)

            if source == "table":
                return await replay_table(site.database.url, ALL_FOLDS, progress=progress)
            return await replay_kafka(
                site.database.url, kafka_of(site.settings), ALL_FOLDS, progress=progress
            )

    result = with_site(work)
    rows = [(one.stream, str(one.version), one.what) for one in result.differences[:_SHOWN_MAX]]
    table = Table(("stream", "version", "what"), rows, "No differences.")
    answer(as_json, result, table)
    if not as_json:
        speed = f"{result.events} events at {result.events_per_s} a second"
        click.echo(f"{speed}, digest {result.digest}.")
    context.exit(1 if result.differences else 0)


@click.group()
def projection() -> None:
    """The tables that are read, made from the log."""


@projection.command("rebuild")
@click.argument("name", type=click.Choice([one.name for one in PROJECTIONS]))
@json_option
def rebuild(name: str, as_json: bool) -> None:
    """Make the tables of NAME again from the log while the old ones are read."""

    async def work(site: Site) -> Rebuilt:
        from projections.rebuild import places_in_kafka, places_in_table
        from projections.rebuild import rebuild as rebuild_projection
        from projections.tables import ensure_tables

        wanted = find_projection(name)
        await ensure_tables(site.pool, (wanted,))
        by_kafka = await reads_kafka(site, name)
        places = places_in_kafka(wanted.topics) if by_kafka else places_in_table()
        with progress_bar(f"rebuild {name}") as advance:

            def progress(so_far: Progress) -> None:
                advance(so_far.done, so_far.total)

            return await rebuild_projection(site.pool, wanted, places, site.clock, progress)

    done = with_site(work)
    data = {**msgspec.structs.asdict(done), "events_per_s": round(done.events_per_s)}
    answer(
        as_json, data, f"{name} is rebuilt: {done.events} events, {data['events_per_s']} a second."
    )


@click.group()
def parked() -> None:
    """Streams that a consumer has set aside because of an event it could not apply."""


@parked.command("list")
@json_option
def list_all(as_json: bool) -> None:
    """Show what waits, and why."""
    waiting = with_site(_parked)
    rows = [(one.consumer, one.stream, str(one.version), one.reason) for one in waiting]
    columns = ("consumer", "stream", "version", "reason")
    answer(as_json, {"parked": waiting}, Table(columns, rows, "Nothing is parked."))


@parked.command("retry")
@click.argument("stream", required=False)
@click.option("--consumer", help="Only this consumer's.")
@json_option
@click.pass_context
def retry(
    context: click.Context,
    stream: str | None,
    consumer: str | None,
    as_json: bool,
) -> None:
    """Apply what waits again, of STREAM or of all; exit 1 where something still cannot be."""

    async def work(site: Site) -> list[dict[str, Any]]:
        waiting = [
            one
            for one in await _parked(site)
            if stream in (None, one.stream) and consumer in (None, one.consumer)
        ]
        if stream is not None and not waiting:
            raise NotFound(f"{stream} is not parked.")
        return [await _retried(site, one) for one in waiting]

    retried = with_site(work)
    ok = all(one["error"] is None for one in retried)
    rows = [
        (one["consumer"], one["stream"], str(one["applied"]), one["error"] or "-")
        for one in retried
    ]
    columns = ("consumer", "stream", "applied", "error")
    answer(as_json, {"ok": ok, "retried": retried}, Table(columns, rows, "Nothing is parked."))
    context.exit(0 if ok else 1)


def _say(text: str) -> None:
    click.echo(f"suanpan: {text}", err=True)


async def _parked(site: Site) -> list[Parked]:
    async with site.pool.connection() as connection:
        return await list_parked(connection)


async def _retried(site: Site, waiting: Parked) -> dict[str, Any]:
    answered: dict[str, Any] = {
        "consumer": waiting.consumer,
        "stream": waiting.stream,
        "applied": 0,
        "error": None,
    }
    consumer = next((one for one in live_consumers() if one.name == waiting.consumer), None)
    if consumer is None:
        return {**answered, "error": "this version has no such consumer"}
    try:
        applied = await retry_parked(site.pool, consumer, waiting.stream)
    except PoisonEvent as error:
        return {**answered, "error": str(error)}
    return {**answered, "applied": applied}


def kafka_of(settings: Settings) -> str:
    """Raises SiteProblem where none is configured."""
    bootstrap = settings.kafka.bootstrap_servers
    if not bootstrap:
        raise SiteProblem("No Kafka is configured: set KAFKA_BOOTSTRAP_SERVERS.")
    return bootstrap
