"""Which schema a projection writes: the tables that are read, or those being rebuilt.

Statements name tables without a schema; what is set here holds until the transaction ends.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from backend.kit.postgres import Connection

ENTER_READ: Final = "SELECT set_config('search_path', 'read, public', true)"
ENTER_REBUILD: Final = """
SELECT set_config('search_path', 'rebuild, public', true),
    set_config('synchronous_commit', 'off', true)
"""
ENTER_SWAP: Final = "SELECT set_config('synchronous_commit', 'on', true)"


class Schema(StrEnum):
    READ = "read"
    REBUILD = "rebuild"


def consumer_name(projection: str, schema: Schema) -> str:
    """`balance` for the live tables, `balance:rebuild` for the ones being rebuilt."""
    return projection if schema is Schema.READ else f"{projection}:{schema.value}"


async def enter(connection: Connection, schema: Schema) -> None:
    """Points unqualified names at a schema for the rest of the open transaction.

    A rebuild does not wait for the disk at each commit: it is started over if it is interrupted,
    and the commit that ends it waits for all of it.
    """
    match schema:
        case Schema.READ:
            await connection.execute(ENTER_READ)
        case Schema.REBUILD:
            await connection.execute(ENTER_REBUILD)


async def wait_for_disk(connection: Connection) -> None:
    """Takes back what `enter` allowed, for the commit that makes rebuilt tables the live ones."""
    await connection.execute(ENTER_SWAP)
