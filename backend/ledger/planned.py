"""Queries with filters of which most are left out: planned for the very values they are run with.

A plan that was made once for any values would look through everything.
"""

from __future__ import annotations

from typing import Any, LiteralString

from backend.kit.postgres import Connection, TakesTooLong
from schemas.errors import BadRequest


async def fetch_planned(
    connection: Connection, query: LiteralString, arguments: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """All rows of one query, in PostgreSQL's binary format, never by a stored plan.

    Raises BadRequest for a question that takes longer than a statement may.
    """
    async with connection.cursor(binary=True) as cursor:
        try:
            await cursor.execute(query, arguments, prepare=False)
        except TakesTooLong as error:
            raise BadRequest("That is too much at once: choose a shorter time.") from error
        return await cursor.fetchall()
