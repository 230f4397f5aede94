"""Numbers for people, keys and channels: from one sequence, never used twice, gaps are fine."""

from __future__ import annotations

from typing import Final

from backend.kit.postgres import Connection, fetch_one

NEXT_ID: Final = "SELECT nextval('entity_ids')"


async def next_entity_id(connection: Connection) -> int:
    """A number no entity of this site has. Raises psycopg errors."""
    row = await fetch_one(connection, NEXT_ID)
    assert row is not None, "nextval answers one row"
    return int(row[0])
