"""I5 from the events alone: a code is used once, and what it is worth is credited once, together.

Pure. Code and account are two streams, so their events may come in either order.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from projections.audit.report import PROVENANCE, SINGLE_USE, Findings
from schemas.event import Recorded
from schemas.ids import account_stream
from schemas.ledger import CodeIssued, CodeKind, CodeRedeemed, CodeVoided, GiftTaken, PointsGranted


class _Left(msgspec.Struct, array_like=True, gc=False):
    """A code that nobody has used."""

    amount_upt: int
    type: str
    is_gift: bool


class _Half(msgspec.Struct, array_like=True, gc=False):
    """The one side of a use whose other side has not come yet."""

    stream: str
    version: int
    command_id: UUID
    account: str
    amount_upt: int
    type: str
    is_gift: bool


class CodesSaved(msgspec.Struct, array_like=True):
    """All that the books know, to go on with."""

    left: dict[str, _Left]
    used: dict[str, _Half]
    credited: dict[str, _Half]


class CodeBooks:
    """`finish` when all events have passed."""

    def __init__(self, findings: Findings) -> None:
        self._findings: Final = findings
        self._left: dict[str, _Left] = {}
        self._used: dict[str, _Half] = {}
        self._credited: dict[str, _Half] = {}

    def issued(self, row: Recorded, event: CodeIssued) -> None:
        is_gift = event.kind is CodeKind.GIFT
        self._left[row.stream] = _Left(event.amount_upt, event.type, is_gift)

    def redeemed(self, row: Recorded, event: CodeRedeemed) -> None:
        code = self._left.pop(row.stream, None)
        if code is None:
            self._findings.add(SINGLE_USE, row.stream, row.version, "a code is used that is none")
            return
        use = _Half(
            row.stream,
            row.version,
            row.command_id,
            account_stream(event.person),
            code.amount_upt,
            code.type,
            code.is_gift,
        )
        credit = self._credited.pop(row.stream, None)
        if credit is None:
            self._used[row.stream] = use
        else:
            self._compare(use, credit)

    def voided(self, row: Recorded, event: CodeVoided) -> None:
        if self._left.pop(row.stream, None) is None:
            self._findings.add(SINGLE_USE, row.stream, row.version, "a code is voided that is none")

    def credited(self, row: Recorded, event: PointsGranted | GiftTaken) -> None:
        """Points that name a code as their source."""
        is_gift = isinstance(event, GiftTaken)
        gift_type = event.type if isinstance(event, GiftTaken) else ""
        credit = _Half(
            row.stream,
            row.version,
            row.command_id,
            row.stream,
            event.amount_upt,
            gift_type,
            is_gift,
        )
        use = self._used.pop(event.source, None)
        if use is not None:
            self._compare(use, credit)
        elif event.source in self._credited:
            self._note(credit, "a code is credited twice")
        else:
            self._credited[event.source] = credit

    def finish(self) -> None:
        """Each use has its credit, and each credit its use."""
        for use in self._used.values():
            self._note(use, "a code is used, and nothing is credited for it")
        for credit in self._credited.values():
            self._note(credit, "points come from a code that was not used for them")

    def saved(self) -> CodesSaved:
        return CodesSaved(self._left, self._used, self._credited)

    def resume(self, saved: CodesSaved) -> None:
        self._left, self._used, self._credited = saved.left, saved.used, saved.credited

    def _compare(self, use: _Half, credit: _Half) -> None:
        if use.command_id != credit.command_id or use.account != credit.account:
            self._note(credit, "a code is credited to another account, or by another command")
        worth = (use.amount_upt, use.type, use.is_gift)
        if worth != (credit.amount_upt, credit.type, credit.is_gift):
            what = f"a code worth {use.amount_upt} is credited as {credit.amount_upt}"
            self._findings.add(PROVENANCE, credit.stream, credit.version, what)

    def _note(self, half: _Half, what: str) -> None:
        self._findings.add(SINGLE_USE, half.stream, half.version, what)
