"""A provider that says any bytes, for tests of what peers did wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def provider_saying(answer: bytes) -> AsyncGenerator[str]:
    """A provider that reads what is asked, says these bytes and hangs up."""

    async def on_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [line for line in head.lower().split(b"\r\n") if b"content-length:" in line]
        await reader.readexactly(int(sizes[0].rpartition(b":")[2]))
        writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(on_call, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
