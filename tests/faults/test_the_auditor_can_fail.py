"""The tests' own auditor finds what it is there to find: an auditor that cannot fail proves
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from backend.journal.chain import genesis_hash
from schemas.event import LEDGER, Recorded, shard_of
from schemas.ids import PersonId, RequestId
from schemas.ledger import (
    AccountOpened,
    GrantKind,
    HoldReleased,
    HoldSettled,
    PointsGranted,
    PointsHeld,
    ReleaseReason,
    Served,
)
from schemas.money import MicroPoints
from schemas.prices import PriceRef
from schemas.registry import encode
from schemas.usage import Basis, Usage
from tests.faults.books import Books
from tests.faults.load import Call, Ending
from tests.faults.site import Account
from tests.given import SITE, held_event, new_id, new_request

STREAM = "account:7"
ACCOUNT = Account(STREAM, "sk-test", 5_000)
SAID = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
COST_UPT = 1_600
"""10 tokens at 100 and 3 at 200 micro-points."""


def books_of(events: Sequence[Any]) -> Books:
    books = Books()
    opening = (AccountOpened(PersonId(7)), granted(5_000))
    for version, event in enumerate((*opening, *events), 1):
        books.take(row(version, event))
    return books


def row(version: int, event: Any) -> Recorded:
    empty = genesis_hash(SITE, STREAM)
    return Recorded(
        epoch=1, xid=version, seq=version, event_id=new_id(), command_id=new_id(), topic=LEDGER,
        shard=shard_of(STREAM), stream=STREAM, version=version, type=type(event).__name__,
        schema=event.SCHEMA, at_us=version, payload=encode(event), prev_hash=empty, hash=empty,
    )  # fmt: skip


def granted(amount_upt: int) -> PointsGranted:
    return PointsGranted(MicroPoints(amount_upt), GrantKind.OPERATOR, "test")


def held(request_id: str, amount_upt: int) -> PointsHeld:
    event = held_event(request_id, amount_upt)
    return msgspec.structs.replace(event, model="quick", price=PriceRef("quick", 1))


def settled(request_id: RequestId, amount_upt: int, basis: Basis = Basis.REPORTED) -> HoldSettled:
    usage, price = Usage(input=10, output=3), PriceRef("quick", 1)
    return HoldSettled(request_id, MicroPoints(amount_upt), usage, basis, price, Served(status=200))


def answered(request_id: str, points: str) -> Call:
    call = Call(ACCOUNT, "quick", streamed=False)
    call.ending, call.request_id, call.points = Ending.ANSWERED, request_id, points
    return call


def test_a_right_history_passes_and_names_what_nobody_was_charged_for() -> None:
    paid, unpaid = new_request(), new_request()
    released = HoldReleased(unpaid, ReleaseReason.SWEPT, Served())
    books = books_of([held(paid, 2_000), settled(paid, COST_UPT), held(unpaid, 500), released])
    said: dict[str, dict[str, Any]] = {paid: SAID, unpaid: SAID}
    assert books.check([ACCOUNT], [answered(paid, "0.0016")], said) == [unpaid]


def test_a_hold_without_an_outcome_is_found() -> None:
    books = books_of([held(new_request(), 2_000)])
    with pytest.raises(AssertionError, match="has 0 outcomes"):
        books.check([ACCOUNT], [], {})


@pytest.mark.parametrize("charged_upt", [COST_UPT - 1, COST_UPT + 1])
def test_a_charge_that_is_not_the_cost_of_the_reported_usage_is_found(charged_upt: int) -> None:
    request = new_request()
    books = books_of([held(request, 2_000), settled(request, charged_upt)])
    with pytest.raises(AssertionError, match=f"{charged_upt} ≠ {COST_UPT}"):
        books.check([ACCOUNT], [], {request: SAID})


def test_a_usage_that_the_provider_never_reported_is_found() -> None:
    request = new_request()
    books = books_of([held(request, 2_000), settled(request, COST_UPT)])
    with pytest.raises(AssertionError, match="nothing was reported"):
        books.check([ACCOUNT], [], {})


def test_a_price_other_than_the_client_was_told_is_found() -> None:
    request = new_request()
    books = books_of([held(request, 2_000), settled(request, COST_UPT)])
    with pytest.raises(AssertionError, match="told another price"):
        books.check([ACCOUNT], [answered(request, "0.0017")], {request: SAID})


def test_an_answer_without_a_reported_charge_is_found() -> None:
    request = new_request()
    books = books_of([held(request, 2_000), settled(request, 1_000, Basis.COUNTED)])
    with pytest.raises(AssertionError, match="not charged as reported"):
        books.check([ACCOUNT], [answered(request, "0.001")], {request: SAID})


def test_a_balance_below_zero_on_the_way_is_found() -> None:
    books = books_of([held(new_request(), 3_000), held(new_request(), 3_000), granted(9_000)])
    assert books.violations == [f"I2: {STREAM} is below zero at version 4"]


def test_a_missing_version_is_found() -> None:
    books = books_of([])
    books.take(row(4, granted(1)))
    assert books.violations == [f"I7: {STREAM} has a gap before 4"]


def test_a_charge_for_a_call_that_was_refused_is_found() -> None:
    request = new_request()
    books = books_of([held(request, 2_000), settled(request, COST_UPT)])
    call = Call(ACCOUNT, "quick", streamed=False)
    call.ending, call.request_id, call.code = Ending.REFUSED, request, "service_unavailable"
    with pytest.raises(AssertionError, match="refused, and charged 1600"):
        books.check([ACCOUNT], [call], {request: SAID})


def test_a_report_that_was_dropped_without_a_reason_is_found() -> None:
    request = new_request()
    books = books_of([held(request, 2_000), settled(request, COST_UPT, Basis.COUNTED)])
    with pytest.raises(AssertionError, match="charged otherwise without a reason"):
        books.check([ACCOUNT], [], {request: SAID})
