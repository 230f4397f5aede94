"""Runs an audit: one pass over the log for all that passes with it, then the tables beside it.

Reads only, in short transactions, so that a live site can be audited.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from backend.journal.fold import Folds
from backend.journal.reader import PAGE_ROWS, head
from backend.kit.postgres import Connection
from projections.audit.books import Books
from projections.audit.read_models import ReadModelsCheck
from projections.audit.report import (
    CHAIN,
    DUPLICATE_PROOF,
    GAPLESS,
    NO_OVERDRAFT,
    ONE_OUTCOME,
    SETTLE_BOUNDS,
    STATES,
    AuditReport,
    Findings,
)
from projections.audit.seals import kafka_seals, local_seals
from projections.audit.tables import AccountsCheck, CommandsCheck, check_consumers
from projections.comparison import Site, StreamsComparison, connect_for_reading, site_row
from projections.replay import Progress, digest_of, no_progress
from projections.row_source import TableRows
from projections.sealed_log import SealedLog
from projections.verifying import Fault, FaultKind, Verifier
from schemas.event import Position

_ALSO: Final = {FaultKind.MISSING: GAPLESS, FaultKind.TWICE: DUPLICATE_PROOF}
_NAMED: Final = {NO_OVERDRAFT, ONE_OUTCOME, SETTLE_BOUNDS}


class AuditAsked(msgspec.Struct, frozen=True):
    """What to audit. `data_dir` None: no local seals; `bootstrap` None: no Kafka."""

    database_url: str
    data_dir: Path | None = None
    bootstrap: str | None = None
    page_rows: int = PAGE_ROWS


def no_note(text: str) -> None:
    """For whoever does not want to know what was left out."""


async def run_audit(
    asked: AuditAsked,
    folds: Folds,
    *,
    progress: Progress = no_progress,
    note: Callable[[str], None] = no_note,
) -> AuditReport:
    """Everything the log and its tables must be, checked. `note` is told what was left out.

    Raises psycopg errors; KafkaUnavailable and SiteProblem where `bootstrap` is given.
    """
    async with await connect_for_reading(asked.database_url, "suanpan audit") as connection:
        site, upto = await site_row(connection), await head(connection)
        audit = _Audit(connection, site, upto, folds, progress, note)
        await audit.read_seals(asked)
        await audit.fold(asked.page_rows)
        await audit.compare()
        return audit.report()


class _Audit:
    def __init__(
        self,
        connection: Connection,
        site: Site,
        upto: Position,
        folds: Folds,
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self._connection: Final = connection
        self._site: Final = site
        self._upto: Final = upto
        self._folds: Final = folds
        self._progress: Final = progress
        self._say: Final = note
        self._findings: Final = Findings()
        self._books: Final = Books(self._findings)
        self._verifier: Final = Verifier(site.site_id, folds, self._books.observe)
        self._sealed: Final[list[SealedLog]] = []

    async def read_seals(self, asked: AuditAsked) -> None:
        if asked.data_dir is not None:
            self._sealed.append(local_seals(asked.data_dir, self._site.site_id, self._findings))
        if asked.bootstrap is not None:
            self._sealed.append(
                await kafka_seals(asked.bootstrap, self._site.site_id, self._findings)
            )

    async def fold(self, page_rows: int) -> None:
        """The one pass over the log."""
        commands = CommandsCheck(self._findings)
        rows = 0
        async for page in TableRows(self._connection, self._upto, page_rows).pages():
            self._verifier.feed(page)
            for sealed in self._sealed:
                sealed.feed(page)
            await commands.page(self._connection, page)
            rows += len(page)
            self._progress("fold", rows, max(self._upto.seq, rows))
        self._books.finish()
        for sealed in self._sealed:
            sealed.finish()
        await commands.recorded(self._connection, self._progress)

    async def compare(self) -> None:
        """The tables beside the log."""
        accounts = AccountsCheck(self._findings, self._verifier, self._books)
        comparison = StreamsComparison(
            self._connection, self._verifier, self._folds, self._site, self._upto
        )
        total = len(self._verifier.lines)
        await comparison.run(
            accounts.inspect, lambda done: self._progress("states", done, max(total, done))
        )
        await accounts.strays(self._connection)
        await check_consumers(self._connection, self._findings)
        for fault in self._verifier.faults():
            self._note_fault(fault, CHAIN)
        for fault in comparison.faults:
            self._note_fault(fault, STATES)
        models = ReadModelsCheck(self._connection, self._findings)
        await models.run(self._verifier.lines, self._progress, self._say)

    def report(self) -> AuditReport:
        checks = self._findings.checks()
        lines = self._verifier.lines.values()
        return AuditReport(
            ok=all(check.ok for check in checks),
            events=self._verifier.events,
            streams=len(lines),
            checks=checks,
            digest=digest_of(lines),
            position=self._upto,
        )

    def _note_fault(self, fault: Fault, check: str) -> None:
        add = self._findings.add
        add(check, fault.stream, fault.version, fault.what)
        if fault.kind in _ALSO:
            add(_ALSO[fault.kind], fault.stream, fault.version, fault.what)
        invariant = fault.what.partition(":")[0]
        if fault.kind is FaultKind.IMPOSSIBLE and invariant in _NAMED:
            add(invariant, fault.stream, fault.version, fault.what)
