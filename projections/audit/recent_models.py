"""I9 since a checkpoint: all balances, and of accounts that were written to the other tables too.

An account at rest has the balance that its checked state says: its history is not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from backend.journal.consumer import Arrived
from backend.kit.postgres import Connection, fetch_all
from backend.ledger.code import CODE
from projections.audit.read_models import (
    APPLIED,
    MODELS,
    Checked,
    ReadModelsCheck,
    balance_values,
    comparable,
    compare_rows,
    has_table,
    keyed,
)
from projections.audit.report import Findings
from projections.balance.projection import NAME as BALANCE
from projections.replay import Progress
from projections.verifying import Line
from schemas.event import Recorded
from schemas.registry import decode

HEADS: Final = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, e.stream,
    e.version, type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload,
    prev_hash, hash
FROM unnest(%(streams)s::text[], %(versions)s::bigint[]) AS h(stream, version)
CROSS JOIN LATERAL (
    SELECT * FROM event_log e WHERE e.stream = h.stream AND e.version = h.version LIMIT 1) e
"""
PAGE_ACCOUNTS: Final = 500
LONG_EVENTS: Final = 50_000
"""An account with more is not read again whole whenever it is written to."""


async def check_recent_models(
    connection: Connection,
    findings: Findings,
    lines: Iterable[Line],
    since: Mapping[str, int],
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    """`since`: stream → its version at the checkpoint. `note` is told what was left out."""
    accounts = comparable(lines)
    moved = {line.stream for line in accounts if line.version > since.get(line.stream, 0)}
    long = {one.stream for one in accounts if one.stream in moved and one.version > LONG_EVENTS}
    resting = [line for line in accounts if line.stream not in moved or line.stream in long]
    model = next(model for model in MODELS if model.name == BALANCE)
    if await has_table(connection, model):
        others = await BalancesCheck(connection, findings, model).run(resting, progress)
        moved |= set(others)
    if long:
        note(f"{len(long)} accounts with over {LONG_EVENTS} events: only balances were compared")
    whole = [line for line in accounts if line.stream in moved - long]
    codes = comparable(lines, CODE.kind)
    whole += [line for line in codes if line.version > since.get(line.stream, 0)]
    await ReadModelsCheck(connection, findings).run(whole, progress, note)


class BalancesCheck:
    """Compares the rows of some accounts with the states that their lines have reached."""

    def __init__(self, connection: Connection, findings: Findings, model: Checked) -> None:
        self._connection: Final = connection
        self._findings: Final = findings
        self._model: Final = model

    async def run(self, lines: Sequence[Line], progress: Progress) -> list[str]:
        """Returns accounts that the projection has at another version: they need their history."""
        others: list[str] = []
        for begin in range(0, len(lines), PAGE_ACCOUNTS):
            page = lines[begin : begin + PAGE_ACCOUNTS]
            async with self._connection.transaction():
                others += await self._page({line.stream: line for line in page})
            progress("balances", begin + len(page), len(lines))
        return others

    async def _page(self, lines: dict[str, Line]) -> list[str]:
        arguments = {"consumers": [BALANCE], "streams": list(lines)}
        found = await fetch_all(self._connection, APPLIED, arguments)
        applied = {(consumer, stream): version for consumer, stream, version in found}
        same = {
            stream: line
            for stream, line in lines.items()
            if applied.get((BALANCE, stream)) == line.version
        }
        arguments = {
            "streams": list(same),
            "versions": [line.version for line in same.values()],
        }
        heads = [Recorded(*row) for row in await fetch_all(self._connection, HEADS, arguments)]
        expected = [
            balance_values(same[row.stream].state, Arrived(row, decode(row)))
            for row in heads
            if row.hash == same[row.stream].hash
        ]
        rows = await fetch_all(self._connection, self._model.query, {"streams": list(same)})
        compare_rows(
            self._findings, self._model, keyed(self._model, rows),
            keyed(self._model, expected), applied,
        )  # fmt: skip
        return [stream for stream in lines if stream not in same]
