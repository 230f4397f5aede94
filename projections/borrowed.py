"""A pool that hands out one connection again and again, inside the transaction it is already in.

So that `consume` keeps effect and place within a larger transaction: its own become savepoints.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, cast

from backend.kit.postgres import Connection, Pool


class _Borrowed:
    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        yield self._connection


def borrowed(connection: Connection) -> Pool:
    """The connection as a pool of one; whoever lent it commits."""
    return cast("Pool", cast("object", _Borrowed(connection)))
