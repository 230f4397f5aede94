"""`codes`: every code that was issued, and who used it when. No text of a code is known here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from backend.ledger.code import CODE
from projections.codes.rows import CodeRow, CodeRows
from projections.target import Schema, consumer_name, enter
from schemas.event import LEDGER
from schemas.ids import kind_of
from schemas.ledger import CodeIssued, CodeRedeemed, CodeVoided

HANDLERS: Final[dict[type[Any], Callable[[CodeRows, Any, Any], None]]] = {
    CodeIssued: CodeRows.issue,
    CodeRedeemed: CodeRows.redeem,
    CodeVoided: CodeRows.void,
}

LOAD: Final = """
SELECT stream, batch, kind, type, hint, amount_upt, actor, issued_us, expires_us, person,
    redeemed_us, voided_us, voided_by, version
FROM codes WHERE stream = ANY(%(streams)s)
"""
SAVE: Final = """
INSERT INTO codes (stream, batch, kind, type, hint, amount_upt, actor, issued_us, expires_us,
    person, redeemed_us, voided_us, voided_by, version)
SELECT stream, batch, kind, type, hint, amount_upt, actor, issued_us, expires_us, person,
    redeemed_us, voided_us, voided_by, version
FROM json_to_recordset(%(rows)s::json) AS i(stream text, batch text, kind text, type text,
    hint text, amount_upt bigint, actor text, issued_us bigint, expires_us bigint, person bigint,
    redeemed_us bigint, voided_us bigint, voided_by text, version bigint)
ORDER BY stream
ON CONFLICT (stream) DO UPDATE SET person = excluded.person, redeemed_us = excluded.redeemed_us,
    voided_us = excluded.voided_us, voided_by = excluded.voided_by, version = excluded.version
"""

NAME: Final = "codes"
TABLES: Final = ("codes",)
TOPICS: Final = (LEDGER,)

_ENCODER: Final = msgspec.json.Encoder()


class CodesProjection:
    """A `Consumer` of the ledger."""

    def __init__(self, schema: Schema = Schema.READ) -> None:
        self._schema: Final = schema
        self.name: Final = consumer_name(NAME, schema)
        self.topics: Final = TOPICS

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        """Raises PoisonEvent where an event cannot follow the code's history."""
        ours = [arrived for arrived in batch if kind_of(arrived.row.stream) == CODE.kind]
        if not ours:
            return
        await enter(connection, self._schema)
        streams = list(dict.fromkeys(arrived.row.stream for arrived in ours))
        stored = await fetch_all(connection, LOAD, {"streams": streams})
        rows = CodeRows(CodeRow(*values) for values in stored)
        for arrived in ours:
            HANDLERS[type(arrived.event)](rows, arrived.row, arrived.event)
        given = _ENCODER.encode(rows.changed()).decode()
        await connection.execute(SAVE, {"rows": given})
