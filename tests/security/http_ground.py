"""Bare sockets against the product's own server: bytes in, bytes out, and who closes when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from backend.app.serving import address_of, bound_socket, serve
from backend.kit.settings import HttpSettings

TIMEOUT_S = 10.0


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """What the other side no longer takes is lost, as on any wire."""
        for piece in pieces:
            self._writer.write(piece)
            try:
                await self._writer.drain()
            except ConnectionError:
                return

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of the next answer, which says its length."""
        async with asyncio.timeout(TIMEOUT_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").strip().split("\r\n")
            pairs = [field.split(":", 1) for field in lines]
            headers = {name.lower(): value.strip() for name, value in pairs}
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(line.split()[1]), headers, body

    async def rest(self) -> bytes:
        """Everything until the server closes; a reset is a close."""
        with contextlib.suppress(RuntimeError):
            cast("asyncio.ReadTransport", self._writer.transport).resume_reading()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._reader.read()
        except ConnectionError:
            return b""

    def stop_reading(self) -> None:
        """Leaves what comes in the buffers of the machine."""
        cast("asyncio.ReadTransport", self._writer.transport).pause_reading()

    async def is_open(self, for_s: float) -> bool:
        """Whether the server has neither spoken nor closed meanwhile."""
        try:
            async with asyncio.timeout(for_s):
                await self._reader.read(1)
        except TimeoutError:
            return True
        except ConnectionError:
            return False
        return False


@asynccontextmanager
async def wire(url: str) -> AsyncGenerator[Wire]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


class Echo:
    """An ASGI application that remembers what reached it; `/early` answers before the body."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append((scope["path"], headers, body))
        size = 20_000_000 if scope["path"] == "/large" else 2
        length = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"o" * size})


@asynccontextmanager
async def echoing(**settings: Any) -> AsyncGenerator[tuple[str, Echo]]:
    """A server with these bounds; gives its address and what it serves."""
    application, bound, stop = Echo(), bound_socket("127.0.0.1", 0), asyncio.Event()
    serving = asyncio.create_task(serve(application, bound, stop, HttpSettings(**settings)))
    try:
        yield address_of(bound), application
    finally:
        stop.set()
        await serving
