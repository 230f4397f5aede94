"""What `GET /health` says: ready, or why not; and what is not as it should be though it works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from backend.app.foundation import Foundation
from backend.http.site import Health
from backend.journal.reader import site_of
from backend.kit.postgres import DatabaseError, fetch_one
from schemas.errors import SuanpanError

OWNS_LOG: Final = """
SELECT pg_get_userbyid(relowner) = current_user FROM pg_class WHERE oid = 'event_log'::regclass
"""
LONG_WRITER: Final = """
SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '10 seconds'
ORDER BY xact_start LIMIT 1
"""
TIMEOUT_S: Final = 3.0

Part = Callable[[], Any]
"""Something that says how it is: a string or a small dict; `down…` makes the site not ready."""


class HealthCheck:
    """Asks the database and every registered part."""

    def __init__(self, base: Foundation, role: str) -> None:
        self._base: Final = base
        self._role: Final = role
        self._parts: dict[str, Part] = {}
        self._alarms: dict[str, Callable[[], dict[str, str]]] = {}
        self._warnings: list[Callable[[], tuple[str, ...]]] = []

    def add(self, name: str, part: Part) -> None:
        self._parts[name] = part

    def add_alarms(self, name: str, alarms: Callable[[], dict[str, str]]) -> None:
        """Alarms are reasons not to be ready: consumer → what is wrong."""
        self._alarms[name] = alarms

    def add_warnings(self, warnings: Callable[[], tuple[str, ...]]) -> None:
        """What an operator should look at though the site works."""
        self._warnings.append(warnings)

    async def __call__(self) -> Health:
        why: list[str] = []
        warnings: list[str] = []
        parts: dict[str, Any] = dict(self._base.parts.health())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._ask_database(why, warnings)
        except (DatabaseError, SuanpanError, OSError, TimeoutError) as error:
            why.append(f"the database does not answer ({type(error).__name__})")
        for name, part in self._parts.items():
            parts[name] = part()
        for name, alarms in self._alarms.items():
            why.extend(f"{name} {which}: {reason}" for which, reason in alarms().items())
        why.extend(
            f"{name} is {said}"
            for name, said in parts.items()
            if isinstance(said, str) and said.startswith("down")
        )
        for say in self._warnings:
            warnings.extend(say())
        status = "not ready" if why else "ready"
        return Health(status, self._role, tuple(why), tuple(warnings), parts)

    async def _ask_database(self, why: list[str], warnings: list[str]) -> None:
        async with self._base.pool.connection() as connection:
            _, _, reason = await site_of(connection)
            owns = await fetch_one(connection, OWNS_LOG)
            long = await fetch_one(connection, LONG_WRITER)
        if reason is not None:
            why.append(f"the site is read-only: {reason}")
        if owns is not None and owns[0]:
            warnings.append(
                "the application's database role owns the log and could rewrite it: give the "
                "application its own role in DATABASE_URL and the owner's in DATABASE_OWNER_URL"
            )
        if long is not None:
            warnings.append(f"backend {long[0]} has been writing for {long[1]} s: readers wait")
