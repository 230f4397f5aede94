"""Wires what is made in the background for people: exports, and audits that were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

from backend.app.auditing import Auditor
from backend.app.foundation import Foundation
from backend.app.health import HealthCheck
from backend.folds import ALL_FOLDS
from backend.journal.view import load_states
from backend.ledger.exports import Export, ExportKind
from projections.declared import find_projection
from projections.health import list_lags, wait_for
from workers.exporting import Exporter

FRESH_WITHIN_S: Final = 10.0
LOOK_EVERY_S: Final = 0.2


def add_jobs(base: Foundation, health: HealthCheck, stack: AsyncExitStack) -> None:
    """Exports and audits: in `serve` and in every `worker`."""
    exporter = Exporter(
        base.pool, base.settings.data_dir, base.clock, base.randomness, fresh_of(base)
    )
    exporter.start()
    stack.push_async_callback(exporter.stop)
    health.add("exporter", lambda: {"finished": exporter.finished})
    auditor = Auditor(base)
    auditor.start()
    stack.push_async_callback(auditor.stop)
    health.add("auditor", lambda: {"finished": auditor.finished})


def fresh_of(base: Foundation) -> Callable[[Export], Awaitable[bool]]:
    """Waits some seconds until the tables hold what was recorded when an export begins."""

    async def fresh(export: Export) -> bool:
        if export.kind is ExportKind.LEDGER:
            return True  # made from the log itself
        table = export.kind.value
        version = await _version(base, export.account)
        deadline_s = base.clock.monotonic_s() + FRESH_WITHIN_S
        while True:
            if await _has(base, table, export.account, version):
                return True
            if base.clock.monotonic_s() > deadline_s:
                return False
            await asyncio.sleep(LOOK_EVERY_S)

    return fresh


async def _version(base: Foundation, account: str | None) -> int:
    """Of the account now; 0 for everybody's."""
    if account is None:
        return 0
    async with base.pool.connection() as connection:
        found = await load_states(connection, ALL_FOLDS, [account])
    return found[account][0] if account in found else 0


async def _has(base: Foundation, table: str, account: str | None, version: int) -> bool:
    if account is not None:
        return not (await wait_for(base.pool, base.clock, table, account, version)).stale
    async with base.pool.connection() as connection:
        lags = await list_lags(connection, [find_projection(table)])
    return all(lag.rows == 0 for lag in lags)
