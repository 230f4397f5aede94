"""The client's end of a streamed answer, over ASGI. Knows when the client has hung up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from litestar.types import HTTPResponseStartEvent, Receive, Send

SEND_TIMEOUT_S: Final = 60.0
"""A client that reads nothing for this long has left, as far as its answer is concerned."""


class AsgiClientStream:
    """Implements `schemas.relay.ClientStream`."""

    def __init__(
        self, send: Send, request_id: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """`headers` go out with the head, beside our own."""
        self._send: Final = send
        self._headers: Final = headers
        self._request_id: Final = request_id
        self._on_left: Callable[[], None] | None = None
        self._ended = False
        self.left = False
        self.begun = False

    def on_left(self, call: Callable[[], None]) -> None:
        self._on_left = call
        if self.left:
            call()

    def leave(self) -> None:
        """The connection is gone, or as good as gone."""
        if not self.left:
            self.left = True
            if self._on_left is not None:
                self._on_left()

    async def send(self, data: bytes) -> None:
        if self.left or self._ended:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                if not self.begun:
                    self.begun = True
                    await self._send(self._head())
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except (TimeoutError, OSError):
            self.leave()

    async def end(self) -> None:
        """The last thing sent: the body is over."""
        self._ended = True
        if not self.begun or self.left:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            self.leave()

    async def watch(self, receive: Receive) -> None:
        """Waits until the client hangs up. Run it in a task and cancel it at the end."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.leave()
                return

    def _head(self) -> HTTPResponseStartEvent:
        return {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                (b"x-request-id", self._request_id.encode()),
                *self._headers,
            ],
        }
