"""docs/peers.md is whole and honest: every row is there, and every test that it names exists."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.architecture.named_tests import NAMED, missing_in, names_in
from tests.architecture.sources import ROOT

ROWS = (
    *(f"CN{number}" for number in range(1, 23)),
    *(f"O{number}" for number in range(1, 12)),
    *(f"N{number}" for number in range(1, 8)),
    *(f"C{number}" for number in range(1, 12)),
    *(f"L{number}" for number in range(1, 5)),
    *(f"T{n}" for n in (1, 3, 5, 6, 7, 8, 10, 12, 13, 15, 16, 18, 20, 22, 23, 25, 26, 28, 29, 30)),
    "T31",
)
NOT_BUILT = re.compile(r"not built yet \([A-I]\d+\)")


class Row(NamedTuple):
    id: str
    wrong: str
    invariant: str
    shown: str


def rows() -> list[Row]:
    lines = (ROOT / "docs" / "peers.md").read_text("utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    return [Row(*found) for found in cells if re.fullmatch(r"[A-Z]+\d+", found[0])]


def test_every_row_is_there_once_and_in_order() -> None:
    assert tuple(row.id for row in rows()) == ROWS


def test_every_row_says_what_went_wrong_and_what_holds_here() -> None:
    assert [row.id for row in rows() if not row.wrong or not row.invariant] == []


def test_every_row_has_a_test_or_says_which_feature_is_missing() -> None:
    bare = [r.id for r in rows() if not NAMED.search(r.shown) and not NOT_BUILT.search(r.shown)]
    assert bare == []


def test_every_test_that_is_named_exists() -> None:
    missing = [f"{row.id}: {name}" for row in rows() for name in missing_in(row.shown)]
    assert missing == []


def test_every_test_that_was_written_for_the_table_is_in_it() -> None:
    named = {pair for row in rows() for pair in NAMED.findall(row.shown)}
    written = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in ROOT.glob("tests/*/test_peers_*.py")
        if path.name != "test_peers_table.py"
        for name in names_in(path.relative_to(ROOT).as_posix())
        if name.startswith("test_")
    }
    assert written - named == set()
