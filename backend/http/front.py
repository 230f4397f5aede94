"""The door: hot relay routes go straight to their ASGI handler, everything else to Litestar."""

from __future__ import annotations

from typing import Final

from litestar.types import ASGIApp, Receive, Scope, Send

HOT_PATHS: Final = frozenset({"/v1/chat/completions"})


class Front:
    """An ASGI application. Litestar alone sees lifespan and WebSocket scopes."""

    def __init__(self, chat: ASGIApp, site: ASGIApp) -> None:
        self._chat: Final = chat
        self._site: Final = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in HOT_PATHS and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        else:
            await self._site(scope, receive, send)
