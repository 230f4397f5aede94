"""What the command reads and writes: times, and answers that are one object."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from backend.cli.durations import parse_expiry
from backend.cli.output import Table, answer, time_text
from backend.cli.root import suanpan
from schemas.errors import BadRequest

NOW_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000


def us(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("30d", NOW_US + 30 * 24 * HOUR_US),
        ("12h", NOW_US + 12 * HOUR_US),
        ("90m", NOW_US + 90 * HOUR_US // 60),
        ("2w", NOW_US + 14 * 24 * HOUR_US),
        ("1y", NOW_US + 365 * 24 * HOUR_US),
        ("2027-01-31", us(2027, 2, 1)),
        ("2027-01-31T18:00", us(2027, 1, 31, 18)),
        ("2027-01-31T18:00:30Z", us(2027, 1, 31, 18, 0, 30)),
        ("2027-01-31T18:00+08:00", us(2027, 1, 31, 10)),
    ],
)
def test_an_expiry_is_read_as_people_write_it(text: str, at_us: int) -> None:
    assert parse_expiry(text, NOW_US) == at_us


@pytest.mark.parametrize("text", ["", "soon", "30", "d", "-3d", "1.5d", "2027-13-01", "9999-12-31"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_expiry(text, NOW_US)


def test_times_are_shown_in_utc() -> None:
    assert time_text(NOW_US) == "2023-11-14T22:13:20Z"
    assert time_text(None) == "-"


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    answer(False, {}, Table(("name", "n"), [("[bold]x[/bold]", "1"), ("李雷", "2")]))
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "李雷" in shown
    answer(False, {}, Table(("name",), [], "Nobody."))
    assert capsys.readouterr().out == "Nobody.\n"


def test_every_command_takes_json_and_says_what_it_does() -> None:
    seen = 0
    waiting = [("suanpan", suanpan)]
    while waiting:
        path, command = waiting.pop()
        assert command.help, path
        children = getattr(command, "commands", None)
        if children is not None:
            waiting += [(f"{path} {name}", child) for name, child in children.items()]
            continue
        seen += 1
        options = {name for parameter in command.params for name in parameter.opts}
        assert "--json" in options, path
        asked_for = CliRunner().invoke(suanpan, [*path.split()[1:], "--help"])
        assert asked_for.exit_code == 0, path
    assert seen >= 30
