"""The port to providers: open a request, read status, headers and bytes, cancel.

Adapters build what goes in and parse what comes out; only a `Transport` opens sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import msgspec


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """One HTTP request, complete: nothing is added to it on the way out but Host and length."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""


class Deadlines(msgspec.Struct, frozen=True, gc=False):
    """How long each part of a call may take, seconds."""

    connect_s: float = 10.0
    """Name lookup, TCP, TLS, and the wait for a free connection."""
    first_byte_s: float = 120.0
    """From the request sent to the answer's status line."""
    idle_s: float = 120.0
    """Longest silence between two pieces of the body, before the first one too."""


class TransportError(Exception):
    """The call ended without a complete answer. The text is for the log, never for a client."""


class ConnectFailed(TransportError):
    """No connection was made: not one byte of the request has left."""


class FirstByteTimeout(TransportError):
    """The request was sent; no status line came in time."""


class IdleTimeout(TransportError):
    """The body fell silent for longer than `Deadlines.idle_s`."""


class UpstreamCut(TransportError):
    """The connection was lost: before the status line (`answered` false) or inside the body."""

    def __init__(self, text: str, *, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class AnswerTooLarge(TransportError):
    """The body is longer than the caller is willing to hold."""


class UpstreamAnswer(Protocol):
    """An answer whose head has come. End it with `release` or `cancel`, whatever happened."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in any case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never empty pieces; all that came before an error comes first.

        Raises IdleTimeout and UpstreamCut, the latter also for a body shorter than announced.
        """
        ...

    async def read(self, limit_bytes: int) -> bytes:
        """The rest of the body. Raises AnswerTooLarge, IdleTimeout, UpstreamCut."""
        ...

    def cancel(self) -> None:
        """Close the connection now: the provider notices and may stop working. Never raises."""
        ...

    async def release(self) -> None:
        """Done with it: keeps the connection where the body's end is near, else closes it."""
        ...


class Transport(Protocol):
    """Opens calls; one per process, shared by all calls."""

    async def open(self, request: UpstreamRequest, deadlines: Deadlines) -> UpstreamAnswer:
        """Send and wait for the head. Any status is an answer; redirects are not followed.

        Raises ConnectFailed, FirstByteTimeout, UpstreamCut.
        """
        ...

    async def close(self) -> None: ...
