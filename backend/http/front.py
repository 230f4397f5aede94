"""The door: hot relay routes go straight to their ASGI handler, everything else to Litestar."""

from __future__ import annotations

from typing import Any, Final, cast

from litestar import Litestar
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from backend.http.api.problems import REQUEST_ID
from backend.kit.clock import Clock, Randomness
from schemas.ids import uuid7

HOT_PATHS: Final = frozenset({"/v1/chat/completions"})
_RANDOM_BITS: Final = 74
_NO_GUESSING: Final = (b"x-content-type-options", b"nosniff")
_NOT_KEPT: Final = (b"cache-control", b"no-store")


class Front:
    """An ASGI application. Litestar alone sees lifespan and WebSocket scopes."""

    def __init__(self, chat: ASGIApp, site: Litestar, clock: Clock, randomness: Randomness) -> None:
        self._chat: Final = chat
        self._clock: Final = clock
        self._randomness: Final = randomness
        self.site: Final = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.site(scope, receive, send)
        elif scope["path"] in HOT_PATHS and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        else:
            request_id = str(uuid7(self._clock.now_us(), self._randomness.bits(_RANDOM_BITS)))
            cast("dict[str, Any]", scope).setdefault("state", {})[REQUEST_ID] = request_id
            await self.site(scope, receive, _named(send, request_id))


def _named(send: Send, request_id: str) -> Send:
    """Every answer says the id under which our logs speak of its request; none is guessed at by a
    browser, or kept by anybody unless its route says so (ASVS 3.4.4, 14.3.2).
    """

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"x-request-id", request_id.encode()), _NO_GUESSING]
            if all(name.lower() != b"cache-control" for name, _ in headers):
                headers.append(_NOT_KEPT)
            message["headers"] = headers
        await send(message)

    return named
