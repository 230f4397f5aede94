"""Who may enter which route of the API. Deny by default: a route says which scope opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from litestar import Request, Router
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from backend.http.api.problems import PREFIX
from backend.http.relay.callers import Callers
from backend.identity.key_view import KeyEntry
from schemas.errors import BadRequest, MissingScope
from schemas.identity import Scope

AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]

BODY_BYTES_MAX: Final = 64 * 1024
IDEMPOTENCY_KEY_MAX: Final = 255
SCOPE: Final = "scope"
WALLET: Final[dict[str, Scope]] = {SCOPE: Scope.WALLET}
"""`opt=` of a route that reads or moves the caller's own points."""
ADMIN: Final[dict[str, Scope]] = {SCOPE: Scope.ADMIN}
"""`opt=` of a route for administrators."""


def api_router(callers: Callers, route_handlers: Sequence[Any]) -> Router:
    """All routes of the API behind one guard."""

    async def guard(connection: AnyConnection, handler: BaseRouteHandler) -> None:
        scope = handler.opt.get(SCOPE)
        if not isinstance(scope, Scope):
            raise MissingScope("This route is closed.")
        connection.state.caller = await callers.of(
            connection.scope["headers"], scope, client=connection.scope
        )

    return Router(
        PREFIX,
        route_handlers=list(route_handlers),
        guards=[guard],
        include_in_schema=True,
        request_max_body_size=BODY_BYTES_MAX,
        security=[{"key": []}],
    )


def caller_of(request: AnyRequest) -> KeyEntry:
    """The key that the guard let in."""
    entry: KeyEntry = request.state.caller
    return entry


def actor_of(request: AnyRequest) -> str:
    """Who does it, as events name them."""
    return f"person:{caller_of(request).person}"


def idempotency_key_of(request: AnyRequest) -> str | None:
    """The caller's own name for this command. Raises BadRequest."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX:
        raise BadRequest(f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_MAX} characters.")
    return key
