"""docs/security.md claims every section of the standard once, and what it calls met is tested."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tests.architecture.named_tests import missing_in, named_in
from tests.architecture.sources import ROOT

SECTIONS_OF_CHAPTERS: Final = {
    1: 5, 2: 4, 3: 7, 4: 4, 6: 8, 7: 6, 8: 4, 9: 2, 11: 7, 13: 4, 14: 3, 15: 4, 16: 5,
}  # fmt: skip
"""OWASP ASVS 5.0.0: how many sections the chapters have that the page is about."""
STATUSES: Final = ("met", "open", "not applicable")
TEXT: Final = (ROOT / "docs" / "security.md").read_text("utf-8")


class Row(NamedTuple):
    section: str
    status: str
    shown: str


def rows() -> list[Row]:
    lines = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| V")]
    return [Row(cells[0].split()[0], cells[1].strip(), cells[2].strip()) for cells in lines]


def test_every_section_is_there_once_and_in_order() -> None:
    assert [row.section for row in rows()] == [
        f"V{chapter}.{number}"
        for chapter, count in SECTIONS_OF_CHAPTERS.items()
        for number in range(1, count + 1)
    ]


def test_what_is_met_names_a_test_and_what_is_not_says_why() -> None:
    assert {row.status for row in rows()} == set(STATUSES)
    assert [row.section for row in rows() if row.status == "met" and not named_in(row.shown)] == []
    reasons = {row.section: re.sub(r"`tests/[^`]+`", "", row.shown).strip(" :") for row in rows()}
    assert [r.section for r in rows() if r.status != "met" and len(reasons[r.section]) < 8] == []


def test_every_test_that_is_named_exists() -> None:
    assert missing_in(TEXT) == []


def test_every_file_of_security_tests_is_part_of_the_page() -> None:
    named = {path for path, _ in named_in(TEXT)}
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/security/test_*.py")}
    assert files - named == set()
