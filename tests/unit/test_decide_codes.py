"""Codes: one use each; of gifts one of a type; used, expired and void ones are worth nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backend.journal.commands import Accept, Refuse, Standing
from backend.ledger.account import ACCOUNT, Account, ImpossibleHistory
from backend.ledger.code import CODE, Code
from backend.ledger.decide_codes import decide_issue_code, decide_redeem, decide_void_code
from backend.ledger.refusals import (
    AlreadyOpen,
    GiftTakenBefore,
    NoSuchAccount,
    OtherKindOfCode,
    SpentCode,
    TooMuch,
    UnknownCode,
)
from schemas.ids import PersonId
from schemas.ledger import CodeIssued, CodeKind, CodeRedeemed, GiftTaken, GrantKind, PointsGranted
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from tests.given import AT_US, POINT, with_upt

STREAM = "code:00"
REDEEM = CodeIssued(CodeKind.REDEEM, MicroPoints(66 * POINT), "b1", "…WXYZ", "cli")
GIFT = CodeIssued(CodeKind.GIFT, MicroPoints(66 * POINT), "b1", "…WXYZ", "cli", "new year")


def code(issued: CodeIssued | None, *more: Any) -> Standing:
    state, version = CODE.empty, 0
    for event in (issued, *more):
        if event is not None:
            version += 1
            state = CODE.apply(state, event, version, AT_US)
    return Standing(STREAM, version, state)


def account(state: Account, version: int = 2) -> Standing:
    return Standing("account:1", version, state)


def redeem(issued: Standing, owner: Account, kind: CodeKind = CodeKind.REDEEM) -> Any:
    return decide_redeem(issued, account(owner), kind, PersonId(1), AT_US)


def test_a_redemption_code_is_used_up_and_credited_in_one_decision() -> None:
    decision = redeem(code(REDEEM), with_upt(POINT))
    assert decision == Accept(
        (
            (0, CodeRedeemed(PersonId(1))),
            (1, PointsGranted(REDEEM.amount_upt, GrantKind.REDEMPTION, "person:1", STREAM)),
        )
    )
    used = code(REDEEM, decision.events[0][1])
    assert redeem(used, with_upt(POINT)) == Refuse(SpentCode())


def test_a_gift_of_a_type_is_taken_once_and_another_type_may_be() -> None:
    decision = redeem(code(GIFT), with_upt(0), CodeKind.GIFT)
    taken = decision.events[1][1]
    assert taken == GiftTaken("new year", GIFT.amount_upt, STREAM)
    owner = with_upt(0, taken)
    assert owner.available_upt == 66 * POINT
    assert redeem(code(GIFT), owner, CodeKind.GIFT) == Refuse(GiftTakenBefore("new year"))
    other = msgspec.structs.replace(GIFT, type="spring")
    assert isinstance(redeem(code(other), owner, CodeKind.GIFT), Accept)
    with pytest.raises(ImpossibleHistory, match="I5"):
        ACCOUNT.apply(owner, taken, 9, AT_US)


def test_a_person_may_use_many_redemption_codes_of_one_batch() -> None:
    owner = with_upt(0)
    for number in range(3):
        decision = redeem(Standing(f"code:{number}", 1, code(REDEEM).state), owner)
        owner = ACCOUNT.apply(owner, decision.events[1][1], 9, AT_US)
    assert owner.issued_upt == 3 * 66 * POINT


@pytest.mark.parametrize(
    ("issued", "kind", "refusal"),
    [
        (code(None), CodeKind.REDEEM, UnknownCode()),
        (code(REDEEM), CodeKind.GIFT, OtherKindOfCode()),
        (code(GIFT), CodeKind.REDEEM, OtherKindOfCode()),
        (code(msgspec.structs.replace(REDEEM, expires_us=AT_US)), CodeKind.REDEEM, SpentCode()),
    ],
)
def test_what_is_no_good_is_refused(issued: Standing, kind: CodeKind, refusal: object) -> None:
    assert redeem(issued, with_upt(0), kind) == Refuse(refusal)


def test_a_code_is_good_until_the_moment_it_expires() -> None:
    issued = code(msgspec.structs.replace(REDEEM, expires_us=AT_US + 1))
    assert isinstance(redeem(issued, with_upt(0)), Accept)


def test_nobody_without_an_account_uses_a_code_up() -> None:
    decision = decide_redeem(
        code(REDEEM), account(Account(), 0), CodeKind.REDEEM, PersonId(1), AT_US
    )
    assert decision == Refuse(NoSuchAccount())


def test_an_account_that_would_hold_too_much_does_not_use_the_code_up() -> None:
    assert redeem(code(REDEEM), with_upt(AMOUNT_UPT_MAX - POINT)) == Refuse(TooMuch())


def test_a_void_code_is_spent_and_a_used_one_is_not_voided() -> None:
    voided = decide_void_code(code(REDEEM), "cli")
    assert isinstance(voided, Accept)
    void = code(REDEEM, voided.events[0][1])
    assert redeem(void, with_upt(0)) == Refuse(SpentCode())
    assert decide_void_code(void, "cli") == Refuse(SpentCode())
    assert decide_void_code(code(REDEEM, CodeRedeemed(PersonId(1))), "cli") == Refuse(SpentCode())
    assert decide_void_code(code(None), "cli") == Refuse(UnknownCode())


def test_a_code_is_issued_once() -> None:
    assert isinstance(decide_issue_code(code(None), REDEEM), Accept)
    assert decide_issue_code(code(REDEEM), REDEEM) == Refuse(AlreadyOpen())
    with pytest.raises(ImpossibleHistory):
        CODE.apply(Code(), CodeRedeemed(PersonId(1)), 1, AT_US)
