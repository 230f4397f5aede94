"""The fold of a `code:` stream: what a code is worth and whether it still is. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.journal.fold import Fold
from backend.ledger.account import ImpossibleHistory
from schemas.ledger import CodeIssued, CodeKind, CodeRedeemed, CodeVoided


class Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    kind: CodeKind = CodeKind.REDEEM
    amount_upt: int = 0
    type: str = ""
    """Of gift codes."""
    batch: str = ""
    hint: str = ""
    expires_us: int | None = None
    person: int = 0
    """Who redeemed it; 0: nobody."""
    voided: bool = False

    def usable(self, at_us: int) -> bool:
        """Neither used, nor void, nor expired."""
        if self.person or self.voided:
            return False
        return self.expires_us is None or at_us < self.expires_us


def apply(state: Code, event: Any, version: int, at_us: int) -> Code:
    """The code after one more event. Raises ImpossibleHistory."""
    if (version == 1) is not isinstance(event, CodeIssued):
        raise ImpossibleHistory("a code is issued once, first")
    match event:
        case CodeIssued():
            return Code(
                event.kind,
                event.amount_upt,
                event.type,
                event.batch,
                event.hint,
                event.expires_us,
            )
        case CodeRedeemed():
            if state.person or state.voided:
                raise ImpossibleHistory("I5: a code is redeemed once")
            return msgspec.structs.replace(state, person=event.person)
        case CodeVoided():
            if state.person or state.voided:
                raise ImpossibleHistory("only a code that is left can be voided")
            return msgspec.structs.replace(state, voided=True)
        case _:
            raise ImpossibleHistory(f"{type(event).__name__} is no event of a code")


CODE: Final = Fold("code", Code(), apply)
