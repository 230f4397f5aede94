"""How a command answers: one JSON object on stdout, or words and tables for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click
import msgspec

SECRET_BYTES_MAX: Final = 8_192

_Command = TypeVar("_Command", bound=Callable[..., Any])

Advance = Callable[[int, int], None]
"""`advance(done, total)` moves a progress bar."""


class Table(msgspec.Struct, frozen=True):
    """Rows for people: cells are text already."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    nothing: str = "Nothing to show."
    """Said instead of an empty table."""


def json_option(command: _Command) -> _Command:
    """Every command has it: `--json` prints one object on stdout and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def answer(as_json: bool, data: object, words: str | Table) -> None:
    """Prints `data` (anything msgspec encodes as an object) or `words`."""
    if as_json:
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    elif isinstance(words, str):
        click.echo(words)
    elif words.rows:
        _print_table(words)
    else:
        click.echo(words.nothing)
    sys.stdout.flush()


@contextmanager
def progress_bar(what: str) -> Generator[Advance]:
    """A bar on stderr; nothing is drawn where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=max(done, total))

        yield advance


def secret_from(*, stdin: bool, option: str, what: str) -> str:
    """One line from stdin, or asked for at the terminal; never an argument, which others can see.

    Raises UsageError where there is neither.
    """
    if stdin:
        return _line_from_stdin(what)
    if not sys.stdin.isatty():
        raise click.UsageError(f"Give the {what} on stdin, with {option}.")
    prompt = click.prompt(what.capitalize(), hide_input=True, err=True, default="")
    return str(prompt)


def time_text(at_us: int | None) -> str:
    """RFC 3339 in UTC, seconds; `-` for none."""
    if at_us is None:
        return "-"
    return f"{datetime.fromtimestamp(at_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def _line_from_stdin(what: str) -> str:
    data = sys.stdin.buffer.read(SECRET_BYTES_MAX + 1)
    if len(data) > SECRET_BYTES_MAX:
        raise click.UsageError(f"The {what} on stdin is too long.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"The {what} on stdin is not UTF-8 text.") from error
    text = text.removesuffix("\n").removesuffix("\r")
    if "\n" in text or "\r" in text:
        raise click.UsageError(f"The {what} on stdin is one line.")
    return text


def _print_table(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        # Text, not markup: a name may hold brackets.
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # Piped into a file or another program: no row is broken in two.
        console = Console(width=max(console.width, 400))
    console.print(drawn)
