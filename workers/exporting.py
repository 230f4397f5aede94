"""Makes the exports that people asked for, one at a time: claims a job, writes its file, names it.

A worker that dies is taken over when its lease runs out: the job starts anew. Reads only tables.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import DatabaseError, Pool
from backend.kit.private_files import make_folder
from backend.kit.tasks import ended, vital
from backend.ledger.export_pages import line_type, pages_of
from backend.ledger.exports import (
    Export,
    ExportFolder,
    ExportFormat,
    claim_export,
    fail_export,
    finish_export,
    note_progress,
    sweep_exports,
)
from backend.ledger.record_texts import csv_header, csv_lines, json_lines
from schemas.errors import SiteProblem, SuanpanError

EVERY_S: Final = 2.0
SWEEP_EVERY_S: Final = 300.0
LEASE_S: Final = 60.0
RENEW_EVERY_S: Final = 1.0
ATTEMPTS_MAX: Final = 5
PAGE_ROWS: Final = 500
"""Few: in a process that does everything, calls share the event loop."""
REST_FACTOR: Final = 1.0
"""After each page it rests this many times as long as the page took."""

Fresh = Callable[[Export], Awaitable[bool]]
"""Waits a while until the tables have what was recorded before; False: something is missing."""

_log = structlog.get_logger("workers.exporting")


class LeaseLost(Exception):
    """Somebody else has the job now, or nobody wants it any more."""


class Exporter:
    """One task per process; several processes may export at once."""

    def __init__(
        self,
        pool: Pool,
        data_dir: Path,
        clock: Clock,
        randomness: Randomness,
        fresh: Fresh,
        *,
        lease_s: float = LEASE_S,
        every_s: float = EVERY_S,
        page_rows: int = PAGE_ROWS,
        rest_factor: float = REST_FACTOR,
    ) -> None:
        self._pool: Final = pool
        self._folder: Final = ExportFolder(data_dir)
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._fresh: Final = fresh
        self._lease_s: Final = lease_s
        self._every_s: Final = every_s
        self._page_rows: Final = page_rows
        self._rest_factor: Final = rest_factor
        self._task: asyncio.Task[None] | None = None
        self.finished = 0

    def start(self) -> None:
        self._task = vital(self._run(), "exporter")

    async def stop(self) -> None:
        """A job that is under way is taken up by another worker, or after the next start."""
        await ended(self._task)

    async def _run(self) -> None:
        swept_s = -SWEEP_EVERY_S
        while True:
            worked = False
            try:
                if self._clock.monotonic_s() - swept_s >= SWEEP_EVERY_S:
                    swept_s = self._clock.monotonic_s()
                    await sweep_exports(self._pool, self._folder)
                worked = await self.export_next()
            except (DatabaseError, OSError, TimeoutError, SuanpanError) as error:
                _log.warning("exports wait", error=type(error).__name__)
            if not worked:
                await asyncio.sleep(self._every_s * (0.75 + self._randomness.bits(16) / 2**17))

    async def export_next(self) -> bool:
        """Does the oldest job that waits; False where none does. Raises psycopg errors."""
        export = await claim_export(self._pool, self._lease_s)
        if export is None:
            return False
        part = self._folder.part(export)
        try:
            await self._export(export, part)
        except LeaseLost:
            _log.warning("export lost", export=str(export.id), attempt=export.attempt)
        except (OSError, SiteProblem) as error:
            # Its sentence names a place on this machine: for the operator, not for who asked.
            _log.error("export failed", export=str(export.id), error=str(error))
            await fail_export(self._pool, export, "The file could not be written.")
        except SuanpanError as error:
            await fail_export(self._pool, export, error.sentence)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return True

    async def _export(self, export: Export, part: Path) -> None:
        if export.attempt > ATTEMPTS_MAX:
            await fail_export(self._pool, export, "It was interrupted too often.")
            return
        fresh = await self._fresh(export)
        make_folder(self._folder.folder, 0o700)
        rows, size = await self._write(export, part)
        if not await finish_export(self._pool, self._folder, export, rows, size, stale=not fresh):
            raise LeaseLost
        self.finished += 1
        _log.info("exported", export=str(export.id), rows=rows, bytes=size)

    async def _write(self, export: Export, part: Path) -> tuple[int, int]:
        """All lines; (rows, bytes). Durable when it returns."""
        rows, renewed_s = 0, self._clock.monotonic_s()
        with LineSink(part, export.format, line_type(export.kind)) as sink:
            async with aclosing(pages_of(self._pool, export, self._page_rows)) as pages:
                begin_s = self._clock.monotonic_s()
                async for lines in pages:
                    # In a thread: neither encoding nor the disk must be felt by calls.
                    await asyncio.to_thread(sink.write, lines)
                    rows += len(lines)
                    now_s = self._clock.monotonic_s()
                    if now_s - renewed_s >= RENEW_EVERY_S:
                        renewed_s = now_s
                        await self._renew(export, rows, sink.size)
                    await asyncio.sleep((now_s - begin_s) * self._rest_factor)
                    begin_s = self._clock.monotonic_s()
            await asyncio.to_thread(sink.sync)
            return rows, sink.size

    async def _renew(self, export: Export, rows: int, size: int) -> None:
        if not await note_progress(self._pool, export, rows, size, self._lease_s):
            raise LeaseLost


class LineSink:
    """A file that only its owner may read, in one of the two formats."""

    def __init__(self, path: Path, shape: ExportFormat, line: type[msgspec.Struct]) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file: Final = os.fdopen(descriptor, "wb")
        self._encode: Final = csv_lines if shape is ExportFormat.CSV else json_lines
        self.size = 0
        if shape is ExportFormat.CSV:
            self._put(csv_header(line))

    def __enter__(self) -> LineSink:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, lines: Sequence[msgspec.Struct]) -> None:
        self._put(self._encode(lines))

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _put(self, text: bytes) -> None:
        self._file.write(text)
        self.size += len(text)
