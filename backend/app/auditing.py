"""Runs the audits that were asked for, one after another, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from backend.app.audit_lines import Asked, Said
from backend.app.foundation import Foundation
from backend.kit.postgres import DatabaseError, Pool
from backend.kit.tasks import ended, vital
from backend.ledger.audit_runs import (
    AuditProgress,
    AuditRun,
    claim_run,
    end_run,
    give_back_run,
    note_run,
)
from schemas.errors import SuanpanError

EVERY_S: Final = 2.0
LEASE_S: Final = 60.0
RENEW_EVERY_S: Final = 1.0
SILENCE_S: Final = 5.0
"""Of the process; the lease is renewed all the same."""
RUN_TIMEOUT_S: Final = 12 * 3600.0
ATTEMPTS_MAX: Final = 3
NOTES_MAX: Final = 50
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
MODULE: Final = "backend.app.audit_process"

_log = structlog.get_logger("app.auditing")


class Auditor:
    """One task per process; several processes may wait for runs, and one gets each."""

    def __init__(self, base: Foundation, *, every_s: float = EVERY_S) -> None:
        self._base: Final = base
        self._pool: Final[Pool] = base.pool
        self._every_s: Final = every_s
        self._task: asyncio.Task[None] | None = None
        self.finished = 0

    def start(self) -> None:
        self._task = vital(self._run(), "auditor")

    async def stop(self) -> None:
        """An audit that is under way is begun anew elsewhere, or after the next start."""
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            ran = False
            try:
                ran = await self.audit_next()
            except (DatabaseError, OSError, TimeoutError, SuanpanError) as error:
                _log.warning("audits wait", error=type(error).__name__)
            if not ran:
                spread = 0.75 + self._base.randomness.bits(16) / 2**17
                await asyncio.sleep(self._every_s * spread)

    async def audit_next(self) -> bool:
        """Runs the audit that waits; False where none does."""
        run = await claim_run(self._pool, LEASE_S)
        if run is None:
            return False
        if run.attempt > ATTEMPTS_MAX:
            await end_run(self._pool, run, AuditProgress(), error="It was interrupted too often.")
            return True
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                await self._in_a_process(run)
        except asyncio.CancelledError:
            with suppress(DatabaseError, OSError):
                await give_back_run(self._pool, run)
            raise
        self.finished += 1
        return True

    async def _in_a_process(self, run: AuditRun) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LINE_BYTES_MAX,
        )  # fmt: skip
        try:
            await self._follow(run, process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _follow(self, run: AuditRun, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(self._asked(run)) + b"\n")
        await process.stdin.drain()
        progress, renewed_s = AuditProgress(), self._base.clock.monotonic_s()
        while True:
            said = await _line(process.stdout)
            if said is not None and said.error is None and not bytes(said.report):
                progress = _further(progress, said)
            elif said is not None:
                report = bytes(said.report).decode() or None
                await end_run(self._pool, run, progress, report=report, error=said.error)
                _log.info("audit ended", run=str(run.id), reported=report is not None)
                return
            elif process.stdout.at_eof():
                await end_run(self._pool, run, progress, error="The audit's process ended.")
                return
            if self._base.clock.monotonic_s() - renewed_s >= RENEW_EVERY_S:
                renewed_s = self._base.clock.monotonic_s()
                if not await note_run(self._pool, run, progress, LEASE_S):
                    return

    def _asked(self, run: AuditRun) -> Asked:
        settings = self._base.settings
        return Asked(
            self._base.parts.parts.database_url,
            str(settings.data_dir),
            settings.kafka.bootstrap_servers,
            run.since_seal,
        )


async def _line(out: asyncio.StreamReader) -> Said | None:
    """The next thing it says; None at the end, and after a while of silence."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SILENCE_S):
            text = await out.readline()
        if text.strip():
            return msgspec.json.decode(text, type=Said)
    return None


def _further(progress: AuditProgress, said: Said) -> AuditProgress:
    if said.note is not None:
        notes = (*progress.notes, said.note)[:NOTES_MAX]
        return msgspec.structs.replace(progress, notes=notes)
    return AuditProgress(said.phase, said.done, said.total, progress.notes)
