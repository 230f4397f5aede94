"""Exports that people asked for: the table of jobs, and the folder of their files.

A worker claims a job by a lease; who loses it finds out before the file becomes visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.kit.postgres import Connection, Pool, fetch_all, fetch_one
from backend.kit.private_files import sync_folder
from backend.kit.time_text import iso_text
from backend.ledger.record_filters import (
    RecordQuery,
    entry_filter,
    request_filter,
    statement_filter,
)
from schemas.errors import Conflict, NotFound
from schemas.ids import PersonId, account_stream

ADD: Final = """
INSERT INTO exports (id, owner, person, kind, format, filters)
SELECT %(id)s, %(owner)s, %(person)s, %(kind)s, %(format)s, %(filters)s::text::jsonb
WHERE (SELECT count(*) FROM exports
       WHERE owner = %(owner)s AND status IN ('waiting', 'running')) < %(unfinished_max)s
    AND (SELECT count(*) FROM exports WHERE owner = %(owner)s) < %(kept_max)s
"""
FIND: Final = """
SELECT id, owner, person, kind, format, filters::text, status, attempt, rows, bytes, stale, error,
    (extract(epoch FROM created_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint,
    (extract(epoch FROM expires_at) * 1000000)::bigint
FROM exports WHERE id = %(id)s AND owner = %(owner)s
    AND (%(person)s::bigint IS NULL OR person = %(person)s::bigint)
"""
LIST: Final = """
SELECT id, owner, person, kind, format, filters::text, status, attempt, rows, bytes, stale, error,
    (extract(epoch FROM created_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint,
    (extract(epoch FROM expires_at) * 1000000)::bigint
FROM exports
WHERE owner = %(owner)s AND (%(person)s::bigint IS NULL OR person = %(person)s::bigint)
ORDER BY created_at DESC LIMIT %(limit)s
"""
CLAIM: Final = """
UPDATE exports SET status = 'running', attempt = attempt + 1, rows = 0, bytes = 0,
    lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id = (
    SELECT id FROM exports
    WHERE status = 'waiting' OR (status = 'running' AND lease_until < clock_timestamp())
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, owner, person, kind, format, filters::text, status, attempt, rows, bytes, stale,
    error, (extract(epoch FROM created_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint,
    (extract(epoch FROM expires_at) * 1000000)::bigint
"""
PROGRESS: Final = """
UPDATE exports SET rows = %(rows)s, bytes = %(bytes)s,
    lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running' RETURNING id
"""
HOLD: Final = """
SELECT id FROM exports WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running' FOR UPDATE
"""
DONE: Final = """
UPDATE exports SET status = 'done', rows = %(rows)s, bytes = %(bytes)s, stale = %(stale)s,
    lease_until = NULL, error = NULL, finished_at = clock_timestamp(),
    expires_at = clock_timestamp() + make_interval(secs => %(kept_s)s)
WHERE id = %(id)s
"""
FAILED: Final = """
UPDATE exports SET status = 'failed', error = %(error)s, lease_until = NULL,
    finished_at = clock_timestamp(),
    expires_at = clock_timestamp() + make_interval(secs => %(kept_s)s)
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""
REMOVE: Final = """
DELETE FROM exports
WHERE id = %(id)s AND owner = %(owner)s
    AND (%(person)s::bigint IS NULL OR person = %(person)s::bigint)
RETURNING id
"""
REMOVE_OF_PERSON: Final = """
DELETE FROM exports WHERE owner = %(person)s OR person = %(person)s RETURNING id
"""
REMOVE_EXPIRED: Final = """
DELETE FROM exports WHERE expires_at < clock_timestamp() RETURNING id
"""
KNOWN: Final = "SELECT id, attempt, status FROM exports WHERE id = ANY(%(ids)s)"

UNFINISHED_MAX: Final = 3
KEPT_MAX: Final = 50
KEPT_S: Final = 7 * 86_400
FOLDER: Final = "objects/exports"
PART: Final = "part"
_SWEPT_FILES: Final = 500

Files = Sequence[Path]


class ExportKind(StrEnum):
    STATEMENT = "statement"
    REQUESTS = "requests"
    LEDGER = "ledger"


class ExportFormat(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


class Export(msgspec.Struct, frozen=True):
    """A job. `person` None: everybody's records; `stale`: newer ones were still on their way.

    `rows` and `bytes` grow while it runs. `expires_us`: when the file is removed.
    """

    id: UUID
    owner: PersonId
    person: PersonId | None
    kind: ExportKind
    format: ExportFormat
    filters: RecordQuery
    status: str
    attempt: int
    rows: int
    bytes: int
    stale: bool
    error: str | None
    created_us: int
    finished_us: int | None
    expires_us: int | None

    @property
    def account(self) -> str | None:
        return None if self.person is None else account_stream(self.person)


class ExportFolder:
    """`<data>/objects/exports`: a file is there under its own name only when it is whole."""

    def __init__(self, data_dir: Path) -> None:
        self.folder: Final = data_dir / FOLDER

    def file(self, export: Export) -> Path:
        return self.folder / f"{export.id}.{export.format}"

    def part(self, export: Export) -> Path:
        return self.folder / f"{export.id}.{export.attempt}.{PART}"

    def remove(self, ids: Sequence[UUID]) -> None:
        """Every file of these exports. Raises OSError."""
        for export_id in ids:
            for path in self.folder.glob(f"{export_id}.*"):
                path.unlink(missing_ok=True)

    def files(self) -> list[tuple[UUID, Path]]:
        """Some of the files there, each with its export's id."""
        found: list[tuple[UUID, Path]] = []
        if not self.folder.is_dir():
            return found
        for path in self.folder.iterdir():
            try:
                found.append((UUID(path.name.partition(".")[0]), path))
            except ValueError:
                continue
            if len(found) >= _SWEPT_FILES:
                break
        return found


def check_asked(kind: ExportKind, filters: RecordQuery, account: str | None) -> None:
    """Raises BadRequest for filters that such an export does not know."""
    match kind:
        case ExportKind.STATEMENT:
            statement_filter(filters, account)
        case ExportKind.REQUESTS:
            request_filter(filters, account)
        case ExportKind.LEDGER:
            entry_filter(filters, account)


async def add_export(
    pool: Pool,
    export_id: UUID,
    owner: PersonId,
    person: PersonId | None,
    kind: ExportKind,
    format: ExportFormat,  # noqa: A002 - what people call it
    filters: RecordQuery,
    now_us: int,
) -> None:
    """Puts a job into the queue; records up to now. Raises BadRequest; Conflict for too many."""
    check_asked(kind, filters, None if person is None else account_stream(person))
    if filters.until is None:
        filters = msgspec.structs.replace(filters, until=iso_text(now_us))
    arguments: dict[str, Any] = {
        "id": export_id,
        "owner": owner,
        "person": person,
        "kind": kind.value,
        "format": format.value,
        "filters": msgspec.json.encode(filters).decode(),
        "unfinished_max": UNFINISHED_MAX,
        "kept_max": KEPT_MAX,
    }
    async with pool.connection() as connection:
        added = await connection.execute(ADD, arguments)
        if added.rowcount != 1:
            raise Conflict(
                f"At most {UNFINISHED_MAX} exports are made for you at once, and {KEPT_MAX} are "
                "kept: wait for one, or delete one."
            )


async def find_export(
    connection: Connection, export_id: UUID, owner: PersonId, person: PersonId | None = None
) -> Export:
    """One that `owner` asked for; with `person`: only of that person's records.

    Raises NotFound, for somebody else's too.
    """
    arguments = {"id": export_id, "owner": owner, "person": person}
    row = await fetch_one(connection, FIND, arguments)
    if row is None:
        raise NotFound("There is no such export.")
    return _export(row)


async def list_exports(
    connection: Connection, owner: PersonId, person: PersonId | None = None
) -> list[Export]:
    """Newest first."""
    arguments = {"owner": owner, "person": person, "limit": KEPT_MAX}
    return [_export(row) for row in await fetch_all(connection, LIST, arguments)]


async def remove_export(
    pool: Pool,
    folder: ExportFolder,
    export_id: UUID,
    owner: PersonId,
    person: PersonId | None = None,
) -> None:
    """The job and its file; a worker that is at it stops. Raises NotFound, OSError."""
    arguments = {"id": export_id, "owner": owner, "person": person}
    async with pool.connection() as connection:
        removed = await fetch_all(connection, REMOVE, arguments)
    if not removed:
        raise NotFound("There is no such export.")
    folder.remove([export_id])


async def erase_exports(pool: Pool, data_dir: Path, person: PersonId) -> None:
    """All exports that a person asked for, and those of that person's records. Raises OSError.

    Files on other machines go with the next pass of their exporters.
    """
    async with pool.connection() as connection:
        removed = await fetch_all(connection, REMOVE_OF_PERSON, {"person": person})
    ExportFolder(data_dir).remove([export_id for (export_id,) in removed])


async def claim_export(pool: Pool, lease_s: float) -> Export | None:
    """The oldest job that nobody is at, now ours; None where there is none."""
    async with pool.connection() as connection:
        row = await fetch_one(connection, CLAIM, {"lease_s": lease_s})
    return None if row is None else _export(row)


async def note_progress(pool: Pool, export: Export, rows: int, size: int, lease_s: float) -> bool:
    """Renews the lease; False where it is no longer ours."""
    arguments = {
        "id": export.id, "attempt": export.attempt, "rows": rows, "bytes": size, "lease_s": lease_s,
    }  # fmt: skip
    async with pool.connection() as connection:
        return await fetch_one(connection, PROGRESS, arguments) is not None


async def finish_export(
    pool: Pool, folder: ExportFolder, export: Export, rows: int, size: int, *, stale: bool
) -> bool:
    """The whole file gets its name; False, and no file, where the lease is no longer ours.

    Raises OSError.
    """
    mine = {"id": export.id, "attempt": export.attempt}
    done = {"id": export.id, "rows": rows, "bytes": size, "stale": stale, "kept_s": KEPT_S}
    async with pool.connection() as connection, connection.transaction():
        if await fetch_one(connection, HOLD, mine) is None:
            return False
        # Held by this transaction: nobody takes the job over between the two.
        folder.part(export).replace(folder.file(export))
        sync_folder(folder.folder)
        await connection.execute(DONE, done)
        return True


async def fail_export(pool: Pool, export: Export, error: str) -> None:
    arguments = {
        "id": export.id, "attempt": export.attempt, "error": error, "kept_s": KEPT_S,
    }  # fmt: skip
    async with pool.connection() as connection:
        await connection.execute(FAILED, arguments)


async def sweep_exports(pool: Pool, folder: ExportFolder) -> int:
    """Removes what has expired, and files here that no job has; returns how many. Raises OSError.

    Also the parts that workers who died have left.
    """
    async with pool.connection() as connection:
        expired = await fetch_all(connection, REMOVE_EXPIRED)
        files = folder.files()
        found = await fetch_all(connection, KNOWN, {"ids": [export_id for export_id, _ in files]})
    known = {export_id: (attempt, status) for export_id, attempt, status in found}
    gone = 0
    for export_id, path in files:
        if export_id not in known or _is_left_over(path, *known[export_id]):
            path.unlink(missing_ok=True)
            gone += 1
    return gone + len(expired)


def _is_left_over(path: Path, attempt: int, status: str) -> bool:
    """Whether a file is the part of an attempt that has ended."""
    if path.suffix != f".{PART}":
        return False
    return status != "running" or path.name.split(".")[1] != str(attempt)


def _export(row: tuple[Any, ...]) -> Export:
    export_id, owner, person, kind, shape, filters, *rest = row
    return Export(
        export_id,
        owner,
        person,
        ExportKind(kind),
        ExportFormat(shape),
        msgspec.json.decode(filters, type=RecordQuery),
        *rest,
    )
