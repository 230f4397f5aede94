"""Makes, drops and swaps the tables that projections own. Nothing here knows what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from psycopg import sql

from backend.kit.postgres import Connection, Pool, fetch_one
from projections.declared import PROJECTIONS, Projection
from projections.target import Schema, consumer_name, enter

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('suanpan read tables', 0))"
MAKE_SHAPES: Final = """
CREATE TABLE IF NOT EXISTS read.projection_shapes (
    projection text COLLATE "C" PRIMARY KEY, shape text NOT NULL)
"""
SHAPE: Final = "SELECT shape FROM read.projection_shapes WHERE projection = %(projection)s"
SAVE_SHAPE: Final = """
INSERT INTO read.projection_shapes (projection, shape) VALUES (%(projection)s, %(shape)s)
ON CONFLICT (projection) DO UPDATE SET shape = excluded.shape
"""
COUNT_TABLES: Final = """
SELECT count(*) FROM pg_catalog.pg_tables
WHERE schemaname = 'read' AND tablename = ANY(%(tables)s)
"""
FORGET_PLACES: Final = "DELETE FROM consumer_places WHERE consumer = %(consumer)s"
FORGET_STREAMS: Final = "DELETE FROM consumer_streams WHERE consumer = %(consumer)s"
FORGET_PARKED: Final = "DELETE FROM parked WHERE consumer = %(consumer)s"


async def ensure_tables(
    pool: Pool, projections: Sequence[Projection] = PROJECTIONS
) -> tuple[str, ...]:
    """Makes what is missing or of another version's shape; returns the names that start over.

    Those have empty tables and no place. A consumer that tails the table fills them from the
    beginning by itself; one that reads Kafka needs `rebuild` first, as its group has moved on.
    """
    over: list[str] = []
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(LOCK)
        await connection.execute(MAKE_SHAPES)
        for projection in projections:
            if not await _is_current(connection, projection):
                await start_over(connection, projection, Schema.READ)
                over.append(projection.name)
    return tuple(over)


async def start_over(connection: Connection, projection: Projection, schema: Schema) -> None:
    """Empty tables and a consumer that has seen nothing, inside the caller's transaction."""
    await clear(connection, projection, schema)
    await enter(connection, schema)
    # Several statements in one text cannot be prepared.
    await connection.execute(projection.script().encode(), prepare=False)
    if schema is Schema.READ:
        await save_shape(connection, projection)


async def clear(connection: Connection, projection: Projection, schema: Schema) -> None:
    """Drops a projection's tables and all that is known of the consumer that filled them."""
    # The place first: it is what a running consumer holds while it writes the tables.
    await forget_consumer(connection, consumer_name(projection.name, schema))
    await _drop(connection, projection, schema)


async def swap(connection: Connection, projection: Projection) -> None:
    """The rebuilt tables become the live ones. Readers wait for the commit, never see neither."""
    await _drop(connection, projection, Schema.READ)
    for table in projection.tables:
        rebuilt = sql.Identifier(Schema.REBUILD.value, table)
        await connection.execute(sql.SQL("ALTER TABLE {} SET SCHEMA read").format(rebuilt))
    await save_shape(connection, projection)


async def save_shape(connection: Connection, projection: Projection) -> None:
    await connection.execute(
        SAVE_SHAPE, {"projection": projection.name, "shape": shape_of(projection)}
    )


async def forget_consumer(connection: Connection, consumer: str) -> None:
    """The consumer has seen nothing. Waits for a transaction of it that is under way."""
    for statement in (FORGET_PLACES, FORGET_STREAMS, FORGET_PARKED):
        await connection.execute(statement, {"consumer": consumer})


def shape_of(projection: Projection) -> str:
    """What the stored rows depend on: the tables and the handlers' revision."""
    return hashlib.sha256(f"{projection.revision}\n{projection.script()}".encode()).hexdigest()


async def _is_current(connection: Connection, projection: Projection) -> bool:
    shape = await fetch_one(connection, SHAPE, {"projection": projection.name})
    if shape is None or shape[0] != shape_of(projection):
        return False
    count = await fetch_one(connection, COUNT_TABLES, {"tables": list(projection.tables)})
    return count is not None and count[0] == len(projection.tables)


async def _drop(connection: Connection, projection: Projection, schema: Schema) -> None:
    for table in projection.tables:
        name = sql.Identifier(schema.value, table)
        await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
