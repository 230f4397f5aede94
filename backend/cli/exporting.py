"""Records of any number as a file, written here and now."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import click

from backend.cli.freshness import is_stale
from backend.cli.output import answer, json_option, progress_bar
from backend.cli.record_options import OF_ANY, looked_for, query_of
from backend.cli.site import Site, with_site
from backend.kit.private_files import sync_folder, unwritable
from backend.ledger.export_pages import line_type, pages_of
from backend.ledger.exports import Export, ExportFormat, ExportKind, check_asked
from schemas.ids import PersonId

PAGE_ROWS: Final = 1_000
NOBODY: Final = PersonId(0)


@click.command()
@click.argument("what", type=click.Choice([kind.value for kind in ExportKind]))
@click.option("--user", "name", metavar="NAME", help="Whose; else everybody's.")
@click.option("--format", "shape", type=click.Choice([shape.value for shape in ExportFormat]),
              default=ExportFormat.CSV.value, show_default=True, help="Of the file.")  # fmt: skip
@click.option("--out", "out", required=True, metavar="FILE",
              type=click.Path(dir_okay=False, path_type=Path),
              help="Where to; there only when it is whole.")  # fmt: skip
@looked_for(*OF_ANY)
@json_option
def export(
    what: str, name: str | None, shape: str, out: Path, as_json: bool, **looked: Any
) -> None:
    """Write a statement, requests or ledger entries to a file of any size."""

    async def work(site: Site) -> tuple[int, int, bool]:
        person = None if name is None else await site.identity.require(name)
        wanted = Export(
            id=UUID(int=0),
            owner=NOBODY,
            person=person,
            kind=ExportKind(what),
            format=ExportFormat(shape),
            filters=query_of(looked),
            status="running",
            attempt=1,
            rows=0,
            bytes=0,
            stale=False,
            error=None,
            created_us=site.clock.now_us(),
            finished_us=None,
            expires_us=None,
        )
        check_asked(wanted.kind, wanted.filters, wanted.account)
        stale = False
        if wanted.kind is not ExportKind.LEDGER:
            stale = await is_stale(site, wanted.kind.value, wanted.account)
        rows, size = await _written(site, wanted, out)
        return rows, size, stale

    rows, size, stale = with_site(work)
    data = {"file": str(out), "rows": rows, "bytes": size, "stale": stale}
    answer(as_json, data, f"{rows} rows are in {out}.")
    if stale:
        click.echo("suanpan: the newest entries are still on their way.", err=True)


async def _written(site: Site, wanted: Export, out: Path) -> tuple[int, int]:
    """(rows, bytes). Raises SiteProblem where the file cannot be written."""
    from workers.exporting import LineSink

    part, rows = out.with_name(f".{out.name}.{os.getpid()}"), 0
    try:
        with (
            LineSink(part, wanted.format, line_type(wanted.kind)) as sink,
            progress_bar(f"export {wanted.kind}") as advance,
        ):
            async with aclosing(pages_of(site.pool, wanted, PAGE_ROWS)) as pages:
                async for lines in pages:
                    sink.write(lines)
                    rows += len(lines)
                    advance(rows, 0)
            sink.sync()
        part.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        part.unlink(missing_ok=True)
    return rows, sink.size
