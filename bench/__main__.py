"""`python -m bench`: measures, prints a table, writes JSON."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from backend.kit.logs import configure_logs
from backend.kit.postgres import DatabaseError
from backend.kit.settings import LogSettings
from bench.children import BenchmarkProblem
from bench.machine import machine
from bench.options import PARTS, QUICK, Options
from bench.profiles import show_profiles
from bench.report import Results, line_of, met_goals, show, write_json, write_markdown
from bench.rows import Row
from bench.suite import run
from schemas.errors import SuanpanError


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    options = QUICK if chosen.quick else Options()
    if chosen.only:
        options = msgspec.structs.replace(options, parts=tuple(chosen.only))
    given = {"repetitions": chosen.repetitions, "seconds": chosen.seconds}
    wanted = {name: value for name, value in given.items() if value is not None}
    options = msgspec.structs.replace(options, **wanted)
    configure_logs(LogSettings(level="warning"), sys.stderr)
    console, progress = Console(), Console(stderr=True, soft_wrap=True)
    facts = machine()
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        progress.print(f"· {line_of(row)}")

    broken = False
    try:
        if "profile" in options.parts:
            asyncio.run(show_profiles(options, console))
        asyncio.run(run(options, note))
    except (BenchmarkProblem, SuanpanError, OSError, DatabaseError) as problem:
        # What was measured before is shown all the same.
        progress.print(Text(f"bench: {problem}", style="red"))
        broken = True
    if rows:
        _publish(Results(facts, chosen.quick, os.getloadavg()[0], rows), chosen, console)
    return 1 if broken or any(row.errors for row in rows) else 0


def _publish(results: Results, chosen: argparse.Namespace, console: Console) -> None:
    if chosen.json is not None:
        write_json(chosen.json, results)
    if chosen.markdown is not None:
        write_markdown(chosen.markdown, results)
    show(console, results)
    met, goals = met_goals(results.rows)
    console.print(f"{met} of {goals} goals met (they do not gate anything)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of about half a minute")
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table for a document")
    parser.add_argument("--repetitions", type=int, metavar="N", help="best of so many")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
