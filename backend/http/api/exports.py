"""`/api/exports`: records of any number as a file, made in the background and fetched when done.

A file is given to whoever asked for it and to nobody else; what an administrator asked for is
reached by the administrators' scope alone.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath, JSONBody
from litestar.response import File
from litestar.status_codes import HTTP_202_ACCEPTED, HTTP_204_NO_CONTENT

from backend.http.api.door import ADMIN, WALLET, AnyRequest, caller_of
from backend.http.api.record_params import RecordsDoor
from backend.kit.time_text import iso_text, iso_text_or_none
from backend.ledger.exports import (
    Export,
    ExportFormat,
    ExportKind,
    add_export,
    find_export,
    list_exports,
    remove_export,
)
from backend.ledger.record_filters import RecordQuery
from schemas.errors import Conflict, NotFound
from schemas.ids import PersonId, uuid7

MEDIA_TYPES: Final = {
    ExportFormat.CSV: "text/csv",
    ExportFormat.JSONL: "application/jsonl",
}
_RANDOM_BITS: Final = 74


class ExportAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to export: the caller's own records; `filters` as in the lists."""

    kind: ExportKind
    format: ExportFormat = ExportFormat.CSV
    filters: RecordQuery = RecordQuery()


class AnyExportAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to export: one person's records, or everybody's."""

    kind: ExportKind
    format: ExportFormat = ExportFormat.CSV
    filters: RecordQuery = RecordQuery()
    person: PersonId | None = None


class ExportJob(msgspec.Struct, frozen=True):
    """`status`: waiting, running, done or failed. `file` is there when it is done; `stale`: the
    newest records were still on their way. `rows` and `bytes` grow while it runs.
    """

    id: UUID
    person: PersonId | None
    kind: ExportKind
    format: ExportFormat
    filters: RecordQuery
    status: str
    rows: int
    bytes: int
    stale: bool
    error: str | None
    created: str
    finished: str | None
    expires: str | None
    file: str | None


class ExportList(msgspec.Struct, frozen=True):
    exports: list[ExportJob]


def export_routes(door: RecordsDoor) -> list[Any]:
    """Of the caller's own records."""

    @post("/exports", opt=WALLET, operation_id="startExport", status_code=HTTP_202_ACCEPTED)
    async def start(request: AnyRequest, data: JSONBody[ExportAsked]) -> ExportJob:
        """Puts an export into the queue; the answer names the job to ask for."""
        own = caller_of(request).person
        return await _started(door, own, own, data, "/api")

    @get("/exports", opt=WALLET, operation_id="listExports")
    async def exports(request: AnyRequest) -> ExportList:
        """The caller's exports, newest first."""
        own = caller_of(request).person
        async with door.pool.connection() as connection:
            found = await list_exports(connection, own, own)
        return ExportList([_job(export, "/api") for export in found])

    @get("/exports/{export_id:uuid}", opt=WALLET, operation_id="showExport")
    async def export_(request: AnyRequest, export_id: FromPath[UUID]) -> ExportJob:
        """How far an export is."""
        own = caller_of(request).person
        async with door.pool.connection() as connection:
            return _job(await find_export(connection, export_id, own, own), "/api")

    @get("/exports/{export_id:uuid}/file", opt=WALLET, operation_id="fetchExport")
    async def file(request: AnyRequest, export_id: FromPath[UUID]) -> File:
        """The file of an export that is done."""
        own = caller_of(request).person
        async with door.pool.connection() as connection:
            export = await find_export(connection, export_id, own, own)
        return _file(door, export)

    @delete(
        "/exports/{export_id:uuid}",
        opt=WALLET,
        operation_id="removeExport",
        status_code=HTTP_204_NO_CONTENT,
    )
    async def remove(request: AnyRequest, export_id: FromPath[UUID]) -> None:
        """Removes an export and its file; one that is under way stops."""
        own = caller_of(request).person
        await remove_export(door.pool, door.files, export_id, own, own)

    return [start, exports, export_, file, remove]


def admin_export_routes(door: RecordsDoor) -> list[Any]:
    """Of anybody's records."""

    @post("/admin/exports", opt=ADMIN, operation_id="startAnyExport", status_code=HTTP_202_ACCEPTED)
    async def start(request: AnyRequest, data: JSONBody[AnyExportAsked]) -> ExportJob:
        """Puts an export of one person's records, or everybody's, into the queue."""
        return await _started(door, caller_of(request).person, data.person, data, "/api/admin")

    @get("/admin/exports", opt=ADMIN, operation_id="listAnyExports")
    async def exports(request: AnyRequest) -> ExportList:
        """The exports that the caller asked for, newest first."""
        async with door.pool.connection() as connection:
            found = await list_exports(connection, caller_of(request).person)
        return ExportList([_job(export, "/api/admin") for export in found])

    @get("/admin/exports/{export_id:uuid}", opt=ADMIN, operation_id="showAnyExport")
    async def export_(request: AnyRequest, export_id: FromPath[UUID]) -> ExportJob:
        """How far an export is."""
        async with door.pool.connection() as connection:
            export = await find_export(connection, export_id, caller_of(request).person)
        return _job(export, "/api/admin")

    @get("/admin/exports/{export_id:uuid}/file", opt=ADMIN, operation_id="fetchAnyExport")
    async def file(request: AnyRequest, export_id: FromPath[UUID]) -> File:
        """The file of an export that is done."""
        async with door.pool.connection() as connection:
            export = await find_export(connection, export_id, caller_of(request).person)
        return _file(door, export)

    @delete(
        "/admin/exports/{export_id:uuid}",
        opt=ADMIN,
        operation_id="removeAnyExport",
        status_code=HTTP_204_NO_CONTENT,
    )
    async def remove(request: AnyRequest, export_id: FromPath[UUID]) -> None:
        """Removes an export and its file; one that is under way stops."""
        await remove_export(door.pool, door.files, export_id, caller_of(request).person)

    return [start, exports, export_, file, remove]


async def _started(
    door: RecordsDoor,
    owner: PersonId,
    person: PersonId | None,
    asked: ExportAsked | AnyExportAsked,
    prefix: str,
) -> ExportJob:
    now_us = door.clock.now_us()
    export_id = uuid7(now_us, door.randomness.bits(_RANDOM_BITS))
    await add_export(
        door.pool, export_id, owner, person, asked.kind, asked.format, asked.filters, now_us
    )
    async with door.pool.connection() as connection:
        return _job(await find_export(connection, export_id, owner), prefix)


def _file(door: RecordsDoor, export: Export) -> File:
    if export.status != "done":
        raise Conflict(f"This export is {export.status}.")
    path = door.files.file(export)
    if not path.is_file():
        raise NotFound("The file of this export is gone: export it again.")
    return File(
        path,
        filename=f"{export.kind}-{iso_text(export.created_us)[:10]}.{export.format}",
        media_type=MEDIA_TYPES[export.format],
    )


def _job(export: Export, prefix: str) -> ExportJob:
    is_done = export.status == "done"
    return ExportJob(
        id=export.id,
        person=export.person,
        kind=export.kind,
        format=export.format,
        filters=export.filters,
        status=export.status,
        rows=export.rows,
        bytes=export.bytes,
        stale=export.stale,
        error=export.error,
        created=iso_text(export.created_us),
        finished=iso_text_or_none(export.finished_us),
        expires=iso_text_or_none(export.expires_us),
        file=f"{prefix}/exports/{export.id}/file" if is_done else None,
    )
