"""The list of codes for an operator, from the read table: who used which, and when.

Eventually consistent and for display: whether a code is good is decided elsewhere.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from backend.kit.postgres import Connection, fetch_all
from schemas.errors import BadRequest

LIST_CODES: Final = """
SELECT stream, batch, kind, type, hint, amount_upt, actor, issued_us, expires_us, person,
    redeemed_us, voided_us, voided_by, state
FROM (
    SELECT *, CASE WHEN person IS NOT NULL THEN 'used' WHEN voided_us IS NOT NULL THEN 'void'
        WHEN expires_us <= %(now_us)s THEN 'expired' ELSE 'unused' END AS state
    FROM read.codes
) c
WHERE (%(batch)s::text IS NULL OR batch = %(batch)s)
    AND (%(state)s::text IS NULL OR state = %(state)s)
    AND (issued_us, stream) < (%(before_us)s, %(before)s)
ORDER BY issued_us DESC, stream DESC LIMIT %(limit)s
"""

CodeState = Literal["unused", "used", "expired", "void"]
LIST_MAX: Final = 1_000
_FIRST: Final = (2**63 - 1, "")


class ListedCode(msgspec.Struct, frozen=True):
    """A code without its text. Amounts in micro-points, times in microseconds since 1970."""

    stream: str
    batch: str
    kind: str
    type: str
    hint: str
    amount_upt: int
    actor: str
    issued_us: int
    expires_us: int | None
    person: int | None
    redeemed_us: int | None
    voided_us: int | None
    voided_by: str | None
    state: CodeState

    @property
    def cursor(self) -> str:
        """What the next page begins after."""
        return f"{self.issued_us}.{self.stream.partition(':')[2]}"


async def list_codes(
    connection: Connection,
    now_us: int,
    *,
    batch: str | None = None,
    state: CodeState | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> list[ListedCode]:
    """At most `limit` codes, the newest first, after `cursor`. Raises BadRequest."""
    before_us, before = _FIRST if cursor is None else _read(cursor)
    given = {
        "now_us": now_us,
        "batch": batch,
        "state": state,
        "before_us": before_us,
        "before": before,
        "limit": min(limit, LIST_MAX),
    }
    return [ListedCode(*row) for row in await fetch_all(connection, LIST_CODES, given)]


def _read(cursor: str) -> tuple[int, str]:
    at, _, digest = cursor.partition(".")
    sound = at.isascii() and at.isdigit() and len(at) <= 18 and digest.isalnum()
    if not sound or len(digest) > 64:
        raise BadRequest("The cursor is not one of a list of codes.")
    return int(at), f"code:{digest}"
