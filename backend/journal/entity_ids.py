"""Numbers for people, keys and channels: from one sequence, never used twice, gaps are fine."""

from __future__ import annotations

from typing import Final

from backend.kit.postgres import Connection, fetch_one

NEXT_ID: Final = "SELECT nextval('entity_ids')"
GO_BEYOND: Final = """
SELECT setval('entity_ids', greatest((SELECT last_value FROM entity_ids), (
    SELECT max(substring(stream FROM '[0-9]+$')::bigint) FROM streams
    WHERE stream ~ '^(account|person|key|channel):[0-9]{1,18}$')))
"""


async def next_entity_id(connection: Connection) -> int:
    """A number no entity of this site has. Raises psycopg errors."""
    row = await fetch_one(connection, NEXT_ID)
    assert row is not None, "nextval answers one row"
    return int(row[0])


async def pass_restored_ids(connection: Connection) -> None:
    """After streams came from elsewhere: their numbers are not given again."""
    await connection.execute(GO_BEYOND)
