"""What a row of `codes` says of a code. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from backend.journal.consumer import PoisonEvent
from schemas.event import Recorded
from schemas.ledger import CodeIssued, CodeRedeemed, CodeVoided


class CodeRow(msgspec.Struct, frozen=True, gc=False):
    """Amounts in micro-points, times in microseconds since 1970."""

    stream: str
    batch: str
    kind: str
    type: str
    """Of gift codes; empty: a redemption code."""
    hint: str
    amount_upt: int
    actor: str
    """Who issued it."""
    issued_us: int
    expires_us: int | None
    person: int | None
    """Who used it."""
    redeemed_us: int | None
    voided_us: int | None
    voided_by: str | None
    version: int


class CodeRows:
    """Codes as they stand after the events applied so far."""

    def __init__(self, stored: Iterable[CodeRow]) -> None:
        self._rows: dict[str, CodeRow] = {row.stream: row for row in stored}
        self._changed: dict[str, None] = {}

    def changed(self) -> list[CodeRow]:
        """The rows that events have made or changed."""
        return [self._rows[stream] for stream in self._changed]

    def issue(self, row: Recorded, event: CodeIssued) -> None:
        """Raises PoisonEvent where there is such a code already."""
        if row.stream in self._rows:
            raise PoisonEvent(f"{row.stream} is issued twice")
        self._put(
            CodeRow(
                stream=row.stream,
                batch=event.batch,
                kind=event.kind,
                type=event.type,
                hint=event.hint,
                amount_upt=event.amount_upt,
                actor=event.actor,
                issued_us=row.at_us,
                expires_us=event.expires_us,
                person=None,
                redeemed_us=None,
                voided_us=None,
                voided_by=None,
                version=row.version,
            )
        )

    def redeem(self, row: Recorded, event: CodeRedeemed) -> None:
        """Raises PoisonEvent where the code is spent (I5)."""
        self._put(
            msgspec.structs.replace(
                self._left(row), person=event.person, redeemed_us=row.at_us, version=row.version
            )
        )

    def void(self, row: Recorded, event: CodeVoided) -> None:
        """Raises PoisonEvent where the code is spent."""
        self._put(
            msgspec.structs.replace(
                self._left(row), voided_us=row.at_us, voided_by=event.actor, version=row.version
            )
        )

    def _left(self, row: Recorded) -> CodeRow:
        found = self._rows.get(row.stream)
        if found is None:
            raise PoisonEvent(f"{row.stream} was never issued")
        if found.person is not None or found.voided_us is not None:
            raise PoisonEvent(f"I5: {row.stream} is spent already")
        return found

    def _put(self, row: CodeRow) -> None:
        self._rows[row.stream] = row
        self._changed[row.stream] = None
