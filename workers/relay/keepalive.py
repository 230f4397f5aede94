"""Tells a waiting client that its call lives: a comment after each stretch of silence."""

from __future__ import annotations

import asyncio
from typing import Final

from schemas.relay import ClientStream

COMMENT: Final = b": keep-alive\n\n"


class KeepAlive:
    """Runs on timers of the event loop until `stop`; a comment is a whole frame, so any place is
    fine.
    """

    def __init__(self, client: ClientStream, every_s: float) -> None:
        self._client: Final = client
        self._every_s: Final = every_s
        self._loop: Final = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        self._sending: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(every_s, self._check)

    def heard(self) -> None:
        """The client was sent something. A provider's comments, which stop here, do not count."""
        self._heard_s = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        silent_s = self._loop.time() - self._heard_s
        if silent_s < self._every_s:
            self._timer = self._loop.call_later(self._every_s - silent_s, self._check)
            return
        if self._client.left:
            return
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._client.send(COMMENT))
        self._timer = self._loop.call_later(self._every_s, self._check)
