"""A TCP gateway before a server: a test can cut, deafen, slow and split what passes through it.

It may also wait for certain bytes, and act at exactly the moment at which they pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

import msgspec

PIECE_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: closing sends RST."""


class Road(StrEnum):
    """What becomes of bytes and connections."""

    OPEN = "open"
    BLACKHOLE = "blackhole"
    """Nothing passes either way, nothing is refused: packets are dropped."""
    DEAF = "deaf"
    """The server hears what is sent; its answers are lost."""
    MUTE = "mute"
    """What is sent is lost; the server's own words pass."""


Sight = Callable[[bytes], bool]
"""Whether what a client has just sent is what is waited for."""


def saying(words: bytes) -> Sight:
    """A statement or request with these bytes in it."""
    return lambda sent: words in sent


def kafka_request(api_key: int) -> Sight:
    """A request of this kind (https://kafka.apache.org/protocol: size, then the API key)."""

    def sees(sent: bytes) -> bool:
        start = 0
        while start + 6 <= len(sent):
            size, kind = struct.unpack_from(">ih", sent, start)
            if kind == api_key:
                return True
            start += 4 + size
        return False

    return sees


class Toll(msgspec.Struct):
    """Waits for something that a client sends."""

    sees: Sight
    act: Callable[[], None]
    forward: bool
    """Whether the piece goes on after the act; otherwise it is lost, and so is everything after it
    on that connection."""


class Gateway:
    """Passes bytes both ways, until told otherwise. Its port outlives every cut."""

    def __init__(self, url: str) -> None:
        """`url`: of the server, or plain `host:port`."""
        parts = urlsplit(url if "://" in url else f"tcp://{url}")
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._road = Road.OPEN
        self._passable = asyncio.Event()
        self._passable.set()
        self._delay_s = 0.0
        self._bytes_per_s: float | None = None
        self._toll: Toll | None = None

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

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def through(self, url: str) -> str:
        """The same URL by way of this gateway."""
        parts = urlsplit(url)
        user = "" if parts.username is None else f"{parts.username}:{parts.password}@"
        return urlunsplit((parts.scheme, f"{user}{self.address}", parts.path, parts.query, ""))

    def lead_to(self, port: int) -> None:
        """New connections go to another port of the same machine."""
        self._target = (self._target[0], port)

    async def restore(self) -> None:
        """The server is there again, at the same address; connections that stood still are reset.

        A real network would deliver what waited, or time out: after a reset nothing late arrives.
        """
        if self._road is not Road.OPEN:
            await self.cut()
        self._road, self._delay_s, self._bytes_per_s = Road.OPEN, 0.0, None
        self._passable.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    def let_through(self) -> None:
        """Ends a blackhole as a real one ends: what was sent meanwhile arrives late."""
        self._road = Road.OPEN
        self._passable.set()

    async def cut(self) -> None:
        """The server is gone: every connection is reset, and no new one is taken."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._passable.set()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Ends every connection with RST; new ones are taken."""
        for writer in list(self._writers):
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    def deafen(self) -> None:
        """From now on the server hears what is sent, and its answers are lost."""
        self._road = Road.DEAF

    def take(self, road: Road) -> None:
        self._road = road
        if road is Road.BLACKHOLE:
            self._passable.clear()

    def slow(self, delay_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        """Each piece waits so long, and passes no faster than this."""
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s

    def on_sent(self, sees: Sight, act: Callable[[], None], *, forward: bool) -> None:
        """Calls `act` once, when a client has sent this, before the server hears of it."""
        self._toll = Toll(sees, act, forward)

    def forget_toll(self) -> None:
        self._toll = None

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            # Cancelled by `cut` alone; asyncio's streams complain of handlers that end so.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._passable.wait()
                await self._join(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers.add(there_writer)
        try:
            await asyncio.gather(
                self._pass(reader, there_writer, answers=False),
                self._pass(there_reader, writer, answers=True),
            )
        finally:
            self._writers.discard(there_writer)
            there_writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        lost = Road.DEAF if answers else Road.MUTE
        try:
            while piece := await reader.read(PIECE_BYTES):
                await self._passable.wait()
                if not answers and not self._paid(piece):
                    return
                if self._road is lost:
                    continue
                if self._delay_s or self._bytes_per_s:
                    slow_s = len(piece) / self._bytes_per_s if self._bytes_per_s else 0.0
                    await asyncio.sleep(self._delay_s + slow_s)
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()

    def _paid(self, sent: bytes) -> bool:
        """Whether the piece may go on."""
        toll = self._toll
        if toll is None or not toll.sees(sent):
            return True
        self._toll = None
        toll.act()
        return toll.forward
