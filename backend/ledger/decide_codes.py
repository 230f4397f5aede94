"""Decisions about redemption and gift codes: a code and an account, in one unit. Pure."""

from __future__ import annotations

from backend.journal.commands import Accept, Decision, Refuse, Standing
from backend.ledger.account import Account
from backend.ledger.code import Code
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
from schemas.ledger import (
    CodeIssued,
    CodeKind,
    CodeRedeemed,
    CodeVoided,
    GiftTaken,
    GrantKind,
    PointsGranted,
)
from schemas.money import AMOUNT_UPT_MAX, MicroPoints


def decide_issue_code(code: Standing, issued: CodeIssued) -> Decision:
    """A code of 128 random bits is not issued twice."""
    if code.version > 0:
        return Refuse(AlreadyOpen())
    return Accept(((0, issued),))


def decide_void_code(code: Standing, actor: str) -> Decision:
    """Ends a code that nobody has used."""
    state: Code = code.state
    if code.version == 0:
        return Refuse(UnknownCode())
    if state.person or state.voided:
        return Refuse(SpentCode())
    return Accept(((0, CodeVoided(actor)),))


def decide_redeem(
    code: Standing, account: Standing, kind: CodeKind, person: PersonId, at_us: int
) -> Decision:
    """Uses a code up and credits the account, both or neither (I5)."""
    issued: Code = code.state
    owner: Account = account.state
    refusal = _refusal(code, account, kind, at_us)
    if refusal is not None:
        return Refuse(refusal)
    amount_upt = MicroPoints(issued.amount_upt)
    if owner.issued_upt + amount_upt > AMOUNT_UPT_MAX:
        return Refuse(TooMuch())
    if kind is CodeKind.GIFT:
        credit = GiftTaken(issued.type, amount_upt, code.stream)
    else:
        actor = f"person:{person}"
        credit = PointsGranted(amount_upt, GrantKind.REDEMPTION, actor, code.stream)
    return Accept(((0, CodeRedeemed(person)), (1, credit)))


def _refusal(code: Standing, account: Standing, kind: CodeKind, at_us: int) -> object | None:
    issued: Code = code.state
    owner: Account = account.state
    if account.version == 0:
        return NoSuchAccount()
    if code.version == 0:
        return UnknownCode()
    if not issued.usable(at_us):
        return SpentCode()
    if issued.kind is not kind:
        return OtherKindOfCode()
    if kind is CodeKind.GIFT and issued.type in owner.gifts:
        return GiftTakenBefore(issued.type)
    return None
