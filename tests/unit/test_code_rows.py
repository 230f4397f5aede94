"""What a code's events become in the table of codes, and a subscription's in the balance."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from backend.journal.consumer import Arrived, PoisonEvent
from projections.balance.rows import row_of
from projections.codes.projection import HANDLERS
from projections.codes.rows import CodeRow, CodeRows
from schemas.event import Recorded
from schemas.ids import PersonId
from schemas.ledger import (
    CodeIssued,
    CodeKind,
    CodeRedeemed,
    CodeVoided,
    PlanBought,
    PlanExpired,
)
from schemas.money import MicroPoints
from schemas.plans import PlanRef, Segment
from tests.given import AT_US, POINT, with_upt

ISSUED = CodeIssued(
    CodeKind.GIFT, MicroPoints(66 * POINT), "b1", "WXYZ", "cli", "spring", AT_US + 9
)
BOUGHT = PlanBought(PlanRef(1, 3), 1, Segment(AT_US, AT_US + 5, MicroPoints(POINT)), AT_US, "UTC")


def row(version: int, event: Any, stream: str = "code:00") -> Recorded:
    number = UUID(int=version)
    return Recorded(
        1, 1, version, number, number, "suanpan.ledger", 0, stream, version,
        type(event).__name__, 1, AT_US + version, b"", b"", b"h",
    )  # fmt: skip


def rows_after(*events: Any, stored: tuple[CodeRow, ...] = ()) -> list[CodeRow]:
    rows = CodeRows(stored)
    for version, event in enumerate(events, 1):
        HANDLERS[type(event)](rows, row(version, event), event)
    return rows.changed()


def test_a_used_code_says_who_and_when() -> None:
    (found,) = rows_after(ISSUED, CodeRedeemed(PersonId(7)))
    assert (found.kind, found.type, found.amount_upt, found.batch, found.hint) == (
        "gift", "spring", 66 * POINT, "b1", "WXYZ",
    )  # fmt: skip
    assert (found.issued_us, found.expires_us) == (AT_US + 1, AT_US + 9)
    assert (found.person, found.redeemed_us, found.voided_us) == (7, AT_US + 2, None)
    assert found.version == 2


def test_a_void_code_says_by_whom() -> None:
    (found,) = rows_after(ISSUED, CodeVoided("cli"))
    assert (found.voided_us, found.voided_by, found.person) == (AT_US + 2, "cli", None)


@pytest.mark.parametrize(
    "events",
    [
        (ISSUED, CodeRedeemed(PersonId(7)), CodeRedeemed(PersonId(8))),
        (ISSUED, CodeVoided("cli"), CodeRedeemed(PersonId(8))),
        (ISSUED, CodeRedeemed(PersonId(7)), CodeVoided("cli")),
        (ISSUED, ISSUED),
        (CodeRedeemed(PersonId(7)),),
    ],
)
def test_a_code_that_is_spent_or_was_never_issued_is_poison(events: tuple[Any, ...]) -> None:
    with pytest.raises(PoisonEvent):
        rows_after(*events)


def test_what_is_stored_is_gone_on_from() -> None:
    stored = rows_after(ISSUED)
    rows = CodeRows(stored)
    event = CodeRedeemed(PersonId(7))
    HANDLERS[CodeRedeemed](rows, row(2, event), event)
    assert rows.changed() == rows_after(ISSUED, event)


def test_the_balance_has_the_subscription_until_its_end_is_recorded() -> None:
    owner = with_upt(3 * POINT, BOUGHT)
    found = row_of(owner, Arrived(row(3, BOUGHT, "account:1"), BOUGHT))
    assert (found.plan_level, found.plan_until_us, found.plan_used) == (1, AT_US + 5, "{}")
    expired = PlanExpired(1)
    owner = with_upt(3 * POINT, BOUGHT, expired)
    found = row_of(owner, Arrived(row(4, expired, "account:1"), expired))
    assert (found.plan_level, found.plan_until_us, found.plan_used) == (None, None, None)
