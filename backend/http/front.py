"""The door: hot relay routes go straight to their ASGI handler, everything else to Litestar."""

from __future__ import annotations

from typing import Final

from litestar import Litestar
from litestar.types import ASGIApp, Receive, Scope, Send

HOT_PATHS: Final = frozenset({"/v1/chat/completions"})


class Front:
    """An ASGI application. Litestar alone sees lifespan and WebSocket scopes."""

    def __init__(self, chat: ASGIApp, site: Litestar) -> None:
        self._chat: Final = chat
        self.site: Final = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in HOT_PATHS and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        else:
            await self.site(scope, receive, send)
