"""The way to Valkey (or Redis): a client whose every wait has an end. Knows no keys' meaning.

Nothing about money may rest on what is kept there: it can be wiped at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CALL_TIMEOUT_S: Final = 1.0
CONNECTIONS_MAX: Final = 16

ValkeyErrors: Final = (RedisError, OSError, TimeoutError)
"""What a call raises when Valkey does not answer as it should."""


class Script:
    """A Lua script: known by its hash, sent in full where the server does not have it."""

    def __init__(self, text: str) -> None:
        self.text: Final = text


class Valkey:
    """One per process; connects when it is first used. `close` at the end."""

    def __init__(self, url: str, prefix: str) -> None:
        """`prefix` keeps the keys of sites that share a server apart."""
        pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=CALL_TIMEOUT_S,
            socket_timeout=CALL_TIMEOUT_S,
            socket_connect_timeout=CALL_TIMEOUT_S,
            # A command that is sent twice counts twice.
            retry=Retry(NoBackoff(), 0),
        )
        self._client: Final = Redis.from_pool(pool)
        self._prefix: Final = prefix
        self._registered: Final[dict[str, Any]] = {}

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> list[int]:
        """Runs a script that answers with a list of integers. Raises ValkeyErrors."""
        registered = self._registered.get(script.text)
        if registered is None:
            registered = self._client.register_script(script.text)
            self._registered[script.text] = registered
        named = [self._prefix + key for key in keys]
        async with asyncio.timeout(CALL_TIMEOUT_S):
            answer = await cast("Awaitable[list[Any]]", registered(keys=named, args=arguments))
        return [int(number) for number in answer]

    async def ping(self) -> None:
        """Raises ValkeyErrors."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await self._client.ping()  # pyright: ignore[reportUnknownMemberType]

    async def close(self) -> None:
        await self._client.aclose()
