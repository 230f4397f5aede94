"""A TCP gateway before Postgres, so that a test can take the database away and give it back."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

PIECE_BYTES = 65_536


class Gateway:
    """Passes bytes both ways; may be cut (connections refused) or deafened (answers are lost)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._deaf = False

    async def __aenter__(self) -> Gateway:
        await self.restore()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.cut()

    def through(self, url: str) -> str:
        """The same URL by way of this gateway."""
        parts = urlsplit(url)
        place = f"{parts.username}:{parts.password}@127.0.0.1:{self._port}"
        return urlunsplit((parts.scheme, place, parts.path, parts.query, ""))

    async def restore(self) -> None:
        """Postgres is there again, at the same address."""
        self._deaf = False
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Postgres is gone: every connection ends, and no new one is taken."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            # Reset, as the kernel of a machine that lost the process would.
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def deafen(self) -> None:
        """From now on Postgres hears what is sent, and its answers are lost."""
        self._deaf = True

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            self._writers |= {writer, there_writer}
            try:
                await asyncio.gather(
                    self._pass(reader, there_writer, answers=False),
                    self._pass(there_reader, writer, answers=True),
                )
            finally:
                self._writers -= {writer, there_writer}
                there_writer.close()
        writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        try:
            while piece := await reader.read(PIECE_BYTES):
                if answers and self._deaf:
                    continue
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()
