"""Shows rows as a table and writes them as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.machine import Machine
from bench.rows import Figure, Row

_SIGNS: Final = {True: Text("met", style="green"), False: Text("missed", style="red"), None: ""}


class Results(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    machine: Machine
    quick: bool
    load_after: float
    """Load average over one minute when the benchmark ended; its own work is in it."""
    rows: list[Row]


def show(console: Console, results: Results) -> None:
    """The whole table, with the machine's facts above it."""
    facts = results.machine
    console.print(
        f"{facts.cores} cores ({facts.processor}), {facts.memory_mb} MB, {facts.system}, "
        f"Python {facts.python}, load average {facts.load_before:.2f} before, "
        f"{results.load_after:.2f} after"
    )
    console.print(", ".join(f"{name} {number}" for name, number in facts.packages.items()))
    table = Table("measurement", "figure", "value", "goal", "")
    for row in results.rows:
        _add(table, row)
    console.print(table)
    if any(row.busy for row in results.rows):
        console.print("(busy): other processes used the machine meanwhile; measure again.")
    if results.quick:
        console.print("A quick run shows that everything works; its figures mean little.")


def _add(table: Table, row: Row) -> None:
    name = f"{row.name} (busy: {row.others_share:.2f})" if row.busy else row.name
    if row.skipped is not None:
        table.add_row(name, "skipped", row.skipped.splitlines()[0], "", "", end_section=True)
        return
    shown: list[tuple[str, str, str, Text | str]] = [
        (
            figure.name,
            value_text(figure),
            figure.goal.text() if figure.goal else "",
            _SIGNS[figure.met],
        )
        for figure in row.figures
    ]
    if row.errors:
        first = Text(row.first_errors[0] if row.first_errors else "", style="red")
        shown.append(("errors", str(row.errors), "0", first))
    for number, cells in enumerate(shown):
        last = number == len(shown) - 1
        table.add_row(name if number == 0 else "", *cells, end_section=last)


def value_text(figure: Figure) -> str:
    """Three significant digits or all that are before the point."""
    size = abs(figure.value)
    digits = 0 if size >= 100 or figure.value == int(figure.value) else 1 if size >= 10 else 3
    return f"{figure.value:,.{digits}f} {figure.unit}".strip()


def line_of(row: Row) -> str:
    """One line for a log while the benchmark runs."""
    if row.skipped is not None:
        return f"{row.name}: skipped: {row.skipped.splitlines()[0]}"
    figures = ", ".join(f"{figure.name} {value_text(figure)}" for figure in row.figures)
    errors = f", {row.errors} ERRORS {row.first_errors}" if row.errors else ""
    return f"{row.name}: {figures}{errors}{' (busy)' if row.busy else ''}"


def write_json(file: Path, results: Results) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


def write_markdown(file: Path, results: Results) -> None:
    """The table as Markdown: what `docs/benchmarks.md` shows."""
    facts = results.machine
    load = f"load average {facts.load_before:.2f} before, {results.load_after:.2f} after"
    cores = f"{facts.cores} cores ({facts.processor}), {facts.memory_mb} MB"
    lines = [
        f"{cores}, Python {facts.python}; {load}.",
        "",
        "| measurement | figures | goals |",
        "|---|---|---|",
    ]
    lines += [_markdown_line(row) for row in results.rows]
    file.write_text("\n".join(lines) + "\n", "utf-8")


def _markdown_line(row: Row) -> str:
    name = f"{row.name} (busy)" if row.busy else row.name
    if row.skipped is not None:
        return f"| {name} | skipped: {row.skipped.splitlines()[0]} | |"
    figures = ", ".join(f"{figure.name} {value_text(figure)}" for figure in row.figures)
    goals = ", ".join(
        f"{figure.name} {figure.goal.text()}: {'met' if figure.met else '**missed**'}"
        for figure in row.figures
        if figure.goal is not None
    )
    errors = f", **{row.errors} errors**" if row.errors else ""
    return f"| {name} | {figures}{errors} | {goals} |"


def met_goals(rows: Sequence[Row]) -> tuple[int, int]:
    """(goals met, goals there are)."""
    goals = [figure.met for row in rows for figure in row.figures if figure.met is not None]
    return sum(goals), len(goals)
