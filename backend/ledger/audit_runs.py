"""Audits that an administrator asked for: the table of runs, one at a time, with their progress.

What an audit checks is not known here.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec

from backend.kit.postgres import Connection, Pool, fetch_all, fetch_one
from schemas.errors import Conflict, NotFound

ADD: Final = """
INSERT INTO audit_runs (id, actor, since_seal) VALUES (%(id)s, %(actor)s, %(since_seal)s)
ON CONFLICT ((true)) WHERE status IN ('waiting', 'running') DO NOTHING
"""
FIND: Final = """
SELECT id, actor, since_seal, status, attempt, phase, done, total, notes, report::text, error,
    (extract(epoch FROM created_at) * 1000000)::bigint,
    (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint
FROM audit_runs WHERE id = %(id)s
"""
LIST: Final = """
SELECT id, actor, since_seal, status, attempt, phase, done, total, notes, report::text, error,
    (extract(epoch FROM created_at) * 1000000)::bigint,
    (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint
FROM audit_runs ORDER BY created_at DESC LIMIT %(limit)s
"""
CLAIM: Final = """
UPDATE audit_runs SET status = 'running', attempt = attempt + 1, phase = '', done = 0, total = 0,
    notes = '{}', started_at = clock_timestamp(),
    lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id = (
    SELECT id FROM audit_runs
    WHERE status = 'waiting' OR (status = 'running' AND lease_until < clock_timestamp())
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, actor, since_seal, status, attempt, phase, done, total, notes, report::text, error,
    (extract(epoch FROM created_at) * 1000000)::bigint,
    (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM finished_at) * 1000000)::bigint
"""
PROGRESS: Final = """
UPDATE audit_runs SET phase = %(phase)s, done = %(done)s, total = %(total)s, notes = %(notes)s,
    lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running' RETURNING id
"""
END: Final = """
UPDATE audit_runs SET status = %(status)s, report = %(report)s::text::jsonb, error = %(error)s,
    phase = %(phase)s, done = %(done)s, total = %(total)s, notes = %(notes)s, lease_until = NULL,
    finished_at = clock_timestamp()
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""
GIVE_BACK: Final = """
UPDATE audit_runs SET lease_until = clock_timestamp()
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""

LISTED_MAX: Final = 50


class AuditRun(msgspec.Struct, frozen=True):
    """`phase`, `done` and `total`: how far it is; `report` is the audit's own answer, as JSON."""

    id: UUID
    actor: str
    since_seal: bool
    status: str
    attempt: int
    phase: str
    done: int
    total: int
    notes: list[str]
    report: str | None
    error: str | None
    created_us: int
    started_us: int | None
    finished_us: int | None


class AuditProgress(msgspec.Struct, frozen=True):
    phase: str = ""
    done: int = 0
    total: int = 0
    notes: tuple[str, ...] = ()


async def add_run(pool: Pool, run_id: UUID, actor: str, *, since_seal: bool) -> None:
    """Raises Conflict while another one waits or runs."""
    arguments = {"id": run_id, "actor": actor, "since_seal": since_seal}
    async with pool.connection() as connection:
        added = await connection.execute(ADD, arguments)
    if added.rowcount != 1:
        raise Conflict("An audit is under way already: wait for its end.")


async def find_run(connection: Connection, run_id: UUID) -> AuditRun:
    """Raises NotFound."""
    row = await fetch_one(connection, FIND, {"id": run_id})
    if row is None:
        raise NotFound("There is no such audit.")
    return AuditRun(*row)


async def list_runs(connection: Connection) -> list[AuditRun]:
    """Newest first."""
    return [AuditRun(*row) for row in await fetch_all(connection, LIST, {"limit": LISTED_MAX})]


async def claim_run(pool: Pool, lease_s: float) -> AuditRun | None:
    """The run that nobody is at, now ours; None where there is none."""
    async with pool.connection() as connection:
        row = await fetch_one(connection, CLAIM, {"lease_s": lease_s})
    return None if row is None else AuditRun(*row)


async def note_run(pool: Pool, run: AuditRun, progress: AuditProgress, lease_s: float) -> bool:
    """Renews the lease; False where it is no longer ours."""
    arguments: dict[str, Any] = {
        "id": run.id,
        "attempt": run.attempt,
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "notes": list(progress.notes),
        "lease_s": lease_s,
    }
    async with pool.connection() as connection:
        return await fetch_one(connection, PROGRESS, arguments) is not None


async def end_run(
    pool: Pool,
    run: AuditRun,
    progress: AuditProgress,
    *,
    report: str | None = None,
    error: str | None = None,
) -> None:
    """With a report it is done, sound or not; with an error it has failed to look."""
    arguments: dict[str, Any] = {
        "id": run.id,
        "attempt": run.attempt,
        "status": "failed" if report is None else "done",
        "report": report,
        "error": error,
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "notes": list(progress.notes),
    }
    async with pool.connection() as connection:
        await connection.execute(END, arguments)


async def give_back_run(pool: Pool, run: AuditRun) -> None:
    """Somebody else may take it at once: we stop."""
    async with pool.connection() as connection:
        await connection.execute(GIVE_BACK, {"id": run.id, "attempt": run.attempt})
