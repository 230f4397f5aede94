"""Runs an audit: one pass over the log for all that passes with it, then the tables beside it.

Reads only, in short transactions, so that a live site can be audited.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from backend.journal.fold import Folds
from backend.journal.reader import PAGE_ROWS, head
from backend.kit.clock import Clock, Randomness, SystemClock, SystemRandomness
from backend.kit.postgres import Connection
from backend.ledger.code import CODE
from projections.audit.checkpoint import Checkpoint, CheckpointFile, FullAudit, UnusableCheckpoint
from projections.audit.old_rows import OldRowsCheck
from projections.audit.passing import Passing
from projections.audit.read_models import ReadModelsCheck, comparable
from projections.audit.recent_models import check_recent_models
from projections.audit.report import (
    CHAIN,
    DUPLICATE_PROOF,
    GAPLESS,
    NO_OVERDRAFT,
    ONE_OUTCOME,
    SETTLE_BOUNDS,
    STATES,
    UNPROVEN_SINCE,
    AuditReport,
    Coverage,
    Findings,
)
from projections.audit.seals import Chain, kafka_seals, local_seals
from projections.audit.tables import AccountsCheck, check_consumers
from projections.audit.topics import TopicsCheck
from projections.comparison import Site, StreamsComparison, connect_for_reading, site_row
from projections.replay import Progress, digest_of, no_progress
from projections.verifying import Fault, FaultKind
from schemas.errors import SiteProblem
from schemas.event import START, Position

_ALSO: Final = {FaultKind.MISSING: GAPLESS, FaultKind.TWICE: DUPLICATE_PROOF}
_NAMED: Final = {NO_OVERDRAFT, ONE_OUTCOME, SETTLE_BOUNDS}
_APPLICATION: Final = "suanpan audit"
_CLOCK: Final = SystemClock()
_RANDOMNESS: Final = SystemRandomness()


class AuditAsked(msgspec.Struct, frozen=True):
    """What to audit. `data_dir` None: no local seals, no checkpoint; `bootstrap` None: no Kafka.

    `since_seal`: only what the newest checkpoint's seal does not cover; all, where there is none.
    """

    database_url: str
    data_dir: Path | None = None
    bootstrap: str | None = None
    page_rows: int = PAGE_ROWS
    since_seal: bool = False


def no_note(text: str) -> None:
    """For whoever does not want to know what was left out."""


async def run_audit(
    asked: AuditAsked,
    folds: Folds,
    *,
    progress: Progress = no_progress,
    note: Callable[[str], None] = no_note,
    clock: Clock = _CLOCK,
    randomness: Randomness = _RANDOMNESS,
) -> AuditReport:
    """Everything the log and its tables must be, checked. `note` is told what was left out.

    Keeps a checkpoint in the data folder where nothing was wrong and there is a seal. Raises
    psycopg errors; KafkaUnavailable and SiteProblem where `bootstrap` is given.
    """
    began_s = clock.monotonic_s()
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(
            await connect_for_reading(asked.database_url, _APPLICATION)
        )
        beside = await stack.enter_async_context(
            await connect_for_reading(asked.database_url, _APPLICATION)
        )
        site, upto = await site_row(connection), await head(connection)
        kept = None
        if asked.data_dir is not None:
            kept = CheckpointFile(asked.data_dir, randomness)
        audit = _Audit(connection, site, upto, folds, progress, note)
        await audit.begin(asked, kept)
        await audit.passing.run(connection, beside, upto, asked.page_rows, progress)
        await audit.compare(asked)
        return audit.report(kept, clock, began_s)


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
        self._since: Checkpoint | None = None
        self._fell_back: str | None = None
        self.passing = Passing(site.site_id, folds, self._findings)

    async def begin(self, asked: AuditAsked, kept: CheckpointFile | None) -> None:
        """Reads the seals; takes up the checkpoint where that was asked for and can be done."""
        if asked.since_seal:
            try:
                await self._take_up(asked, kept)
            except UnusableCheckpoint as reason:
                self._fell_back = str(reason)
                self._say(f"{reason}: everything is read")
            else:
                return
        self.passing = Passing(self._site.site_id, self._folds, self._findings)
        for chain in await self._chains(asked, None):
            self.passing.seal_with(chain)

    async def _take_up(self, asked: AuditAsked, kept: CheckpointFile | None) -> None:
        if kept is None:
            raise UnusableCheckpoint("there is no data folder to keep a checkpoint in")
        since = kept.load()
        since.check_usable(self._site.site_id, self._site.epoch, asked.bootstrap is not None)
        (chain,) = await self._chains(asked, since)
        self.passing.resume(since)
        self.passing.seal_with(chain)
        self._since = since

    async def _chains(self, asked: AuditAsked, since: Checkpoint | None) -> list[Chain]:
        """The seals to hold the log against; the last of them is the one that still grows."""
        chains: list[Chain] = []
        site_id, findings = self._site.site_id, self._findings
        if asked.data_dir is not None and (since is None or asked.bootstrap is None):
            chains.append(local_seals(asked.data_dir, site_id, findings, since))
        if asked.bootstrap is not None:
            chains.append(await kafka_seals(asked.bootstrap, site_id, findings, since))
        return chains

    async def compare(self, asked: AuditAsked) -> None:
        """The tables beside the log, and Kafka."""
        passing, since = self.passing, self._since
        old_rows = OldRowsCheck(self._connection, self._findings, self._site.site_id, self._folds)
        if since is not None:
            await old_rows.run(since.streams, self._progress)
        comparison = await self._compare_streams()
        for fault in (*old_rows.faults, *passing.verifier.faults()):
            self._note_fault(fault, CHAIN)
        for fault in comparison.faults:
            self._note_fault(fault, STATES)
        await check_consumers(self._connection, self._findings)
        if since is None:
            await passing.commands.recorded(self._connection, self._progress)
            if asked.bootstrap is not None:
                topics = TopicsCheck(
                    self._connection, self._findings, self._site.site_id, passing.verifier
                )
                await topics.run(asked.bootstrap, self._progress)
        await self._compare_models()

    async def _compare_streams(self) -> StreamsComparison:
        """Also tells where rows belong that fitted nowhere, so the verifier's faults come after."""
        verifier = self.passing.verifier
        accounts = AccountsCheck(self._findings, verifier, self.passing.books)
        comparison = StreamsComparison(
            self._connection, verifier, self._folds, self._site, self._upto
        )
        total = len(verifier.lines)
        await comparison.run(
            accounts.inspect, lambda done: self._progress("states", done, max(total, done))
        )
        await accounts.strays(self._connection)
        return comparison

    async def _compare_models(self) -> None:
        lines, since = self.passing.verifier.lines.values(), self._since
        if since is None:
            models = ReadModelsCheck(self._connection, self._findings)
            whole = [*comparable(lines), *comparable(lines, CODE.kind)]
            await models.run(whole, self._progress, self._say)
            return
        versions = {one.stream: one.version for one in since.streams}
        await check_recent_models(
            self._connection, self._findings, lines, versions, self._progress, self._say
        )

    def report(self, kept: CheckpointFile | None, clock: Clock, began_s: float) -> AuditReport:
        checks = self._findings.checks()
        verifier, since = self.passing.verifier, self._since
        ok = all(check.ok for check in checks)
        events = verifier.events + (0 if since is None else since.events)
        if since is not None:
            full = since.full
        else:
            full = FullAudit(clock.now_us(), self._upto, events) if ok else None
        checkpoint = None
        if ok and kept is not None and full is not None:
            checkpoint = self._keep(kept, full, clock)
        seconds = clock.monotonic_s() - began_s
        return AuditReport(
            ok=ok,
            events=events,
            streams=len(verifier.lines),
            checks=checks,
            digest=digest_of(verifier.lines.values()),
            position=self._upto,
            coverage=Coverage(
                kind="full" if since is None else "since-seal",
                events_read=verifier.events,
                after=START if since is None else since.position,
                seal=None if since is None else since.anchor.seal.number,
                fell_back=self._fell_back,
                full_audit_at_us=None if full is None else full.at_us,
                checkpoint=checkpoint,
                seconds=round(seconds, 3),
                events_per_s=round(verifier.events / seconds) if seconds > 0 else 0,
                unproven=() if since is None else UNPROVEN_SINCE,
            ),
        )

    def _keep(self, kept: CheckpointFile, full: FullAudit, clock: Clock) -> str | None:
        checkpoint = self.passing.checkpoint(self._site, full, clock.now_us())
        if checkpoint is None:
            return None
        try:
            return kept.save(checkpoint)
        except SiteProblem as problem:
            self._say(f"no checkpoint was kept: {problem.sentence}")
            return None

    def _note_fault(self, fault: Fault, check: str) -> None:
        add = self._findings.add
        add(check, fault.stream, fault.version, fault.what)
        if fault.kind in _ALSO:
            add(_ALSO[fault.kind], fault.stream, fault.version, fault.what)
        invariant = fault.what.partition(":")[0]
        if fault.kind is FaultKind.IMPOSSIBLE and invariant in _NAMED:
            add(invariant, fault.stream, fault.version, fault.what)
