"""`/api/admin/health` and `/api/admin/audits`: how the site is, and whether its books are sound."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.params import FromPath, JSONBody
from litestar.status_codes import HTTP_202_ACCEPTED

from backend.http.api.door import ADMIN, AnyRequest, actor_of
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import Pool
from backend.kit.time_text import iso_text, iso_text_or_none
from backend.ledger.audit_runs import AuditRun, add_run, find_run, list_runs
from schemas.ids import uuid7

_RANDOM_BITS: Final = 74


class ProjectionFigures(msgspec.Struct, frozen=True):
    """`rows` not applied yet (at most 10,000 are counted), the oldest of them `behind_ms` ago."""

    name: str
    rows: int
    behind_ms: int
    parked: int
    events: int


class ParkedStream(msgspec.Struct, frozen=True):
    """A stream that a projection has set aside from this version on, and why."""

    consumer: str
    stream: str
    version: int
    reason: str


class PublisherFigures(msgspec.Struct, frozen=True):
    """`rows`: recorded and not yet in Kafka (at most 10,000 are counted)."""

    rows: int
    behind_ms: int


class SealFigures(msgspec.Struct, frozen=True):
    """The newest seal in this process's data folder."""

    number: int
    made_at: str
    events: int
    streams: int


class SiteFigures(msgspec.Struct, frozen=True):
    """`publisher` is null without Kafka, `seals` where the data folder holds none. `warnings`: one
    sentence for each thing to look at.
    """

    read_only: str | None
    projections: list[ProjectionFigures]
    parked: list[ParkedStream]
    publisher: PublisherFigures | None
    seals: SealFigures | None
    warnings: list[str]


class AuditAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`since_seal`: only what was written since the last audit's newest seal."""

    since_seal: bool = False


class Audit(msgspec.Struct, frozen=True):
    """`status`: waiting, running, done or failed. `ok` and `report` are there when it is done: the
    report is what `suanpan audit --json` prints.
    """

    id: UUID
    actor: str
    since_seal: bool
    status: str
    phase: str
    done: int
    total: int
    notes: list[str]
    ok: bool | None
    report: dict[str, Any] | None
    error: str | None
    created: str
    started: str | None
    finished: str | None


class AuditList(msgspec.Struct, frozen=True):
    audits: list[Audit]


class OperationsDoor(msgspec.Struct, frozen=True):
    """What the routes need."""

    pool: Pool
    clock: Clock
    randomness: Randomness
    figures: Callable[[], Awaitable[SiteFigures]]


def operation_routes(door: OperationsDoor) -> list[Any]:
    @get("/admin/health", opt=ADMIN, operation_id="showSiteHealth")
    async def health() -> SiteFigures:
        """How far projections and publisher are, what is parked, and the newest seal."""
        return await door.figures()

    @post("/admin/audits", opt=ADMIN, operation_id="startAudit", status_code=HTTP_202_ACCEPTED)
    async def start(request: AnyRequest, data: JSONBody[AuditAsked]) -> Audit:
        """Starts an audit; one at a time. It reads only, and the site goes on."""
        run_id = uuid7(door.clock.now_us(), door.randomness.bits(_RANDOM_BITS))
        await add_run(door.pool, run_id, actor_of(request), since_seal=data.since_seal)
        async with door.pool.connection() as connection:
            return _audit(await find_run(connection, run_id))

    @get("/admin/audits", opt=ADMIN, operation_id="listAudits")
    async def audits() -> AuditList:
        """The last fifty audits, newest first."""
        async with door.pool.connection() as connection:
            return AuditList([_audit(run) for run in await list_runs(connection)])

    @get("/admin/audits/{run_id:uuid}", opt=ADMIN, operation_id="showAudit")
    async def audit(run_id: FromPath[UUID]) -> Audit:
        """How far an audit is, and what it found."""
        async with door.pool.connection() as connection:
            return _audit(await find_run(connection, run_id))

    return [health, start, audits, audit]


def _audit(run: AuditRun) -> Audit:
    report = None if run.report is None else msgspec.json.decode(run.report, type=dict[str, Any])
    return Audit(
        id=run.id,
        actor=run.actor,
        since_seal=run.since_seal,
        status=run.status,
        phase=run.phase,
        done=run.done,
        total=run.total,
        notes=run.notes,
        ok=None if report is None else bool(report["ok"]),
        report=report,
        error=run.error,
        created=iso_text(run.created_us),
        started=iso_text_or_none(run.started_us),
        finished=iso_text_or_none(run.finished_us),
    )
