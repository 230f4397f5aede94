"""The second set of books, closed at any event and opened again, finds what it would have found."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from projections.audit.books import Book
from projections.audit.books_saved import ResumableBooks
from projections.audit.report import Findings
from projections.verifying import Line
from schemas.catalog import PriceSet
from schemas.event import Recorded
from schemas.ids import RequestId, late_command_id, outcome_command_id
from schemas.ledger import (
    HoldReleased,
    HoldSettled,
    ReleaseReason,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import MicroPoints
from schemas.usage import Basis
from tests.given import MODEL, PER_TOKEN, POINT, REF, granted_event, held_event, new_request
from tests.unit.test_audit_books import COST_UPT, USAGE

FIRST, SECOND, THIRD, OPEN = (new_request() for _ in range(4))


def row(version: int, stream: str, event: Any) -> Recorded:
    request = RequestId(getattr(event, "request_id", ""))
    command = None
    if isinstance(event, UsageLate):
        command = late_command_id(request)
    elif isinstance(event, HoldSettled | HoldReleased):
        command = outcome_command_id(request)
    return Recorded(
        1, version, version, UUID(int=version), command or UUID(int=900 + version), "", 0, stream,
        version, type(event).__name__, 1, 0, b"", b"", b"",
    )  # fmt: skip


def settled(request: str, charged_upt: int, *, swept: bool = False) -> HoldSettled:
    return HoldSettled(
        RequestId(request), MicroPoints(charged_upt), USAGE, Basis.REPORTED, REF, Served(),
        swept=swept,
    )  # fmt: skip


def late(request: str, sweep: int, charged_upt: int) -> UsageLate:
    return UsageLate(
        RequestId(request), UUID(int=sweep), MicroPoints(charged_upt), MicroPoints(0), USAGE,
        Basis.REPORTED, REF, Served(),
    )  # fmt: skip


HISTORY: list[tuple[str, Any]] = [
    ("account:1", granted_event(POINT)),
    ("account:1", held_event(FIRST, COST_UPT)),
    ("account:1", settled(FIRST, COST_UPT - 7)),
    ("account:1", ShortfallRecorded(RequestId(FIRST), MicroPoints(7))),
    ("account:1", held_event(SECOND, COST_UPT)),
    ("account:1", settled(SECOND, 90, swept=True)),
    ("account:1", ShortfallRecorded(RequestId(SECOND), MicroPoints(10))),
    ("account:1", late(SECOND, 6, COST_UPT - 100)),
    ("account:1", held_event(THIRD, COST_UPT)),
    ("account:1", HoldReleased(RequestId(THIRD), ReleaseReason.SWEPT, Served())),
    ("account:1", late(THIRD, 10, COST_UPT)),
    ("account:1", held_event(OPEN, 5)),
    (f"price:{MODEL}", PriceSet(PER_TOKEN)),
    ("account:1", settled(OPEN, 6)),
]
"""A price that comes last, a sweep that is settled later, a charge in two parts, and two wrongs."""


def passed(books: ResumableBooks, begin: int, end: int) -> None:
    for number, (stream, event) in enumerate(HISTORY[begin:end], begin + 1):
        version = 1 if stream.startswith("price:") else number
        books.observe(row(version, stream, event), event, Line(stream, b"", None, ""))


def whole() -> tuple[bytes, Any]:
    findings = Findings()
    books = ResumableBooks(findings)
    passed(books, 0, len(HISTORY))
    saved = books.saved()
    books.finish()
    return saved, findings.checks()


@pytest.mark.parametrize("cut", range(len(HISTORY) + 1))
def test_books_opened_again_at_any_event_end_the_same(cut: int) -> None:
    findings = Findings()
    first = ResumableBooks(findings)
    passed(first, 0, cut)
    second = ResumableBooks(findings)
    second.resume(first.saved())
    passed(second, cut, len(HISTORY))
    assert second.saved() == whole()[0]
    second.finish()
    assert findings.checks() == whole()[1]


def test_the_history_is_one_that_fails() -> None:
    assert sum(check.violations for check in whole()[1]) > 0


def test_all_that_the_books_remember_is_saved() -> None:
    """Who adds a member to the books adds it to what is saved, and then here."""
    assert set(vars(ResumableBooks(Findings()))) == {
        "_codes", "_entries", "_findings", "_groups", "_issuer_upt", "_plans", "_prices",
        "_revenue_upt", "_swept", "_unpriced", "accounts",
    }  # fmt: skip
    assert set(Book.__slots__) == {
        "charge", "charged_upt", "gifts", "held_upt", "holds", "issued_upt", "plan", "version",
    }  # fmt: skip


def test_what_is_no_books_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        ResumableBooks(Findings()).resume(b"\x91")
