"""One keep-alive connection of the load generator: sends a request, reads and checks the answer.

Must cost little: it shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol, cast

import httptools

from bench.shapes import STAMP

DONE: Final = b"data: [DONE]"
ERROR_CHARS_MAX: Final = 300


class Book(Protocol):
    """Where a caller's results go, and who says what it does next."""

    events: int
    """Events that a streamed answer must have; 0: answers are not streamed."""

    def chunk(self, sent_ns: int, now_ns: int) -> None: ...
    def answered(
        self, caller: Caller, started_ns: int, first_ns: int, fault: str | None
    ) -> None: ...
    def lost(self, caller: Caller, *, in_flight: bool) -> None: ...


class Caller(asyncio.Protocol):
    """At most one call at a time."""

    def __init__(self, book: Book) -> None:
        self._book: Final = book
        self._streamed: Final = book.events > 0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._started_ns = self._first_ns = 0
        self._events, self._done = 0, False
        self._rest = b""

    @property
    def in_flight(self) -> bool:
        return self._started_ns > 0

    def call(self, request: bytes) -> None:
        """Sends a whole request."""
        assert self._transport is not None
        assert not self.in_flight
        self._first_ns = self._events = 0
        self._done, self._rest = False, b""
        self._started_ns = time.monotonic_ns()
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._first_ns == 0:
            self._first_ns = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._book.lost(self, in_flight=self.in_flight)

    def on_body(self, body: bytes) -> None:
        if not self._streamed:
            self._rest += body
            return
        now_ns = time.monotonic_ns()
        text = self._rest + body if self._rest else body
        for stamp in STAMP.findall(text):
            self._book.chunk(int(stamp), now_ns)
            self._events += 1
        self._done = self._done or DONE in text
        # Only what may still become a whole frame is kept.
        self._rest = text[text.rfind(b"\n\n") + 2 :] if not text.endswith(b"\n\n") else b""

    def on_message_complete(self) -> None:
        fault, started_ns = self._fault(), self._started_ns
        self._started_ns = 0
        self._book.answered(self, started_ns, self._first_ns, fault)

    def _fault(self) -> str | None:
        """What is wrong with the answer, or None."""
        status = self._parser.get_status_code()
        if status != 200:
            return f"status {status} {self._rest[:ERROR_CHARS_MAX].decode(errors='replace')}"
        if not self._streamed:
            return None if b'"usage"' in self._rest else "an answer without usage"
        if not self._done:
            return "a stream without [DONE]"
        if self._events != self._book.events:
            return f"{self._events} events instead of {self._book.events}"
        return None
