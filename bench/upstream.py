"""A fast mock of an OpenAI-compatible upstream, in a process of its own.

`python -m bench.upstream` prints its port on the first line. It must never be what a measurement
waits for, and knows no more HTTP than well-behaved clients send.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final, cast

import httptools
import uvloop

from bench.lifetime import end_with_parent
from bench.shapes import (
    DONE_FRAME,
    SHAPES,
    STAMP_DIGITS,
    Frames,
    Shape,
    frames_of,
    whole_answer,
)

BODY_BYTES_MAX: Final = 1024 * 1024
BUCKETS: Final = 10
"""Streams of one gap start spread over this many ticks, so that they do not all send at once."""

_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"]+)"')
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
_USAGE: Final = re.compile(rb'"include_usage"\s*:\s*true')
_LAST_CHUNK: Final = b"0\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class Ticker:
    """Sends the next event of all streams of one bucket, every `gap_s`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gap_s: float, phase_s: float) -> None:
        self.members: Final[set[Upstream]] = set()
        self._loop, self._gap_s = loop, gap_s
        self._due_s = loop.time() + phase_s
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Upstream) -> None:
        self.members.add(stream)
        if self._timer is None:
            gaps_missed = max(0.0, self._loop.time() - self._due_s) // self._gap_s
            self._due_s += (gaps_missed + 1) * self._gap_s
            self._timer = self._loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self.members:
            return
        for stream in tuple(self.members):
            stream.send_event()
        # A late tick is not made up for: pacing is what is offered, not a debt.
        self._due_s = max(self._due_s + self._gap_s, self._loop.time())
        self._timer = self._loop.call_at(self._due_s, self._tick)


class Model:
    """One model's bytes, made once, and its tickers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shape: Shape) -> None:
        frames: Frames = frames_of(shape.model)
        size = len(frames.before) + STAMP_DIGITS + len(frames.after)
        self.shape: Final = shape
        self.whole: Final = _answer(b"200 OK", whole_answer(shape.model))
        self.before: Final = b"%x\r\n%b" % (size, frames.before)
        self.after: Final = frames.after + b"\r\n"
        finish = http_chunk(frames.finish)
        done = http_chunk(DONE_FRAME) + _LAST_CHUNK
        self.end: Final = finish + done
        self.end_with_usage: Final = finish + http_chunk(frames.usage) + done
        gap_s = shape.gap_ms / 1000
        self._tickers: Final = [Ticker(loop, gap_s, i * gap_s / BUCKETS) for i in range(BUCKETS)]
        self._next = 0

    def pace(self, stream: Upstream) -> Ticker:
        self._next = (self._next + 1) % BUCKETS
        ticker = self._tickers[self._next]
        ticker.add(stream)
        return ticker


class Upstream(asyncio.Protocol):
    """One connection. The client is served one request at a time, without pipelining."""

    def __init__(self, models: dict[bytes, Model]) -> None:
        self._models: Final = models
        self._write: Callable[[bytes], None] = _not_connected
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._model: Model | None = None
        self._ticker: Ticker | None = None
        self._left = 0
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.write

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_pacing()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        named = _MODEL.search(body)
        model = self._models.get(named.group(1)) if named else None
        if model is None or len(body) > BODY_BYTES_MAX:
            self._write(_answer(b"404 Not Found", b'{"error":{"message":"no such model"}}'))
        elif _STREAM.search(body):
            self._begin(model, usage=_USAGE.search(body) is not None)
        else:
            self._write(model.whole)

    def _begin(self, model: Model, *, usage: bool) -> None:
        self._model = model
        self._left = model.shape.events
        self._end = model.end_with_usage if usage else model.end
        self._write(_STREAM_HEAD)
        self.send_event()
        if model.shape.gap_ms:
            self._ticker = model.pace(self)
            return
        while self._left:
            self.send_event()

    def send_event(self) -> None:
        """The next event, stamped now, and the end of the stream behind the last one."""
        model = self._model
        assert model is not None
        self._write(b"%b%018d%b" % (model.before, time.monotonic_ns(), model.after))
        self._left -= 1
        if self._left == 0:
            self._stop_pacing()
            self._write(self._end)

    def _stop_pacing(self) -> None:
        if self._ticker is not None:
            self._ticker.members.discard(self)
            self._ticker = None

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _not_connected(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes for no connection")


async def start_upstream(port: int = 0) -> asyncio.Server:
    """A listening upstream on 127.0.0.1 in this event loop."""
    loop = asyncio.get_running_loop()
    models = {name.encode(): Model(loop, shape) for name, shape in SHAPES.items()}
    return await loop.create_server(lambda: Upstream(models), "127.0.0.1", port, backlog=1024)


async def _serve() -> None:
    server = await start_upstream()
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    end_with_parent()
    uvloop.run(_serve())
