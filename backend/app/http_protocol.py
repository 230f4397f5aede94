"""HTTP/1.1 as uvicorn reads it, with bounds it lacks: on heads in time, bytes and number.

Knows no route and reads no body; what is refused here never reaches the application.
"""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from backend.http.api.problems import MEDIA_TYPE, Problem
from backend.kit.settings import HttpSettings

LINGER_S: Final = 1.0
"""What a refused client still sends is read and dropped for so long: a reset would take the
refusal with it."""
WRITE_STALL_S: Final = 60.0
"""A client that reads nothing for this long is gone."""
_LINE_BYTES: Final = 4
"""Colon, blank, CR and LF of a header's line."""


class WaitingConnections:
    """Connections of one server with no request under way; too many, and the oldest makes room."""

    def __init__(self, most: int) -> None:
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Half the files stay for calls, the database and the disk, whatever strangers open.
        self._most: Final = max(1, min(most, open_files // 2))
        self._oldest_first: dict[BoundedProtocol, None] = {}

    def add(self, connection: BoundedProtocol) -> None:
        self._oldest_first.pop(connection, None)
        self._oldest_first[connection] = None
        if len(self._oldest_first) > self._most:
            oldest = next(iter(self._oldest_first))
            del self._oldest_first[oldest]
            oldest.make_room()

    def discard(self, connection: BoundedProtocol) -> None:
        self._oldest_first.pop(connection, None)

    def __len__(self) -> int:
        return len(self._oldest_first)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. The parser itself refuses what two readers could frame differently: a length
    together with a transfer encoding, bare line feeds, folded lines (RFC 9112 §2.2, §5.2, §6.1).
    """

    def __init__(
        self, settings: HttpSettings, waiting: WaitingConnections, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s: Final = settings.header_timeout_s
        self._bytes_max: Final = settings.header_bytes_max
        self._waiting: Final = waiting
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        """Come since the last piece of a body, or request, was complete."""
        self._in_head = False
        self._in_body = False
        self._refused = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._arm()
        self._waiting.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._reads_again()
        self._waiting.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._unread_bytes += len(data)
        if not self._is_answering():
            self._arm()
        super().data_received(data)
        if self._unread_bytes > self._bytes_max:
            self._refuse_size()

    def make_room(self) -> None:
        """Closes a connection that nothing is under way on."""
        if not self._is_answering() and not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(WRITE_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._reads_again()
        super().resume_writing()

    # The parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer is no header (RFC 9110 §6.5.1): nobody has checked it when the call begins.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_head()
        self._in_head, self._in_body = False, True
        self._disarm()
        self._waiting.discard(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._unread_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_answering() or self.transport.is_closing():
            return
        if self._in_head or self._in_body:
            # Answered early: the rest of the body may come, but not for ever.
            self._arm()
        self._waiting.add(self)

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read."""
        del msg
        self._refuse(400, "invalid_request", "This is not a valid HTTP request.")

    # Bounds

    def _check_head(self) -> None:
        """Raises into the parser, which reads no further."""
        if self._unread_bytes > self._bytes_max and self._head_bytes() > self._bytes_max:
            self._refuse_size()
            raise httptools.HttpParserError("head too large")
        hosts, is_encoded = 0, False
        for name, _ in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                is_encoded = True
        is_old = self.parser is not None and self.parser.get_http_version() == "1.0"
        # RFC 9112 §6.1: an encoding in HTTP/1.0 is faulty framing; §3.2: exactly one Host.
        if is_encoded if is_old else hosts != 1:
            self.send_400_response("")
            raise httptools.HttpParserError("bad head")

    def _head_bytes(self) -> int:
        lines = sum(len(name) + len(value) + _LINE_BYTES for name, value in self.headers)
        return len(self.url) + lines

    def _is_answering(self) -> bool:
        # There is none before the first request, whatever the type says.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._timeout_s, self._is_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _reads_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _is_late(self) -> None:
        self._deadline = None
        if self._is_answering() or self.transport.is_closing():
            return  # A request behind one that is being answered has its time afterwards.
        if self._in_head:
            self._refuse(408, "request_timeout", "The request's head did not arrive in time.")
        else:
            self.transport.close()

    def _refuse_size(self) -> None:
        sentence = f"The request's head is larger than {self._bytes_max} bytes."
        self._refuse(431, "headers_too_large", sentence)

    def _refuse(self, status: int, code: str, sentence: str) -> None:
        """Says why and closes; only closes where an answer is on its way."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._disarm()
        if self._is_answering():
            if self.pipeline or self.cycle.response_started:
                self.transport.close()
                return
            # The application is told that its client is gone, and what it sends is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        title = HTTPStatus(status).phrase
        body = msgspec.json.encode(Problem(title, status, code, sentence))
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
