"""Who may enter which route. Deny by default: a route says which scope opens it, or that it is
public."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from litestar import Request, Router
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from backend.http.api.bodies import BODY_BYTES_MAX, strict_requests
from backend.http.api.problems import PREFIX
from backend.http.relay.callers import Callers
from backend.identity.key_view import KeyEntry
from schemas.errors import BadRequest, MissingScope
from schemas.identity import Scope

AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[AnyConnection, BaseRouteHandler], Awaitable[None]]

IDEMPOTENCY_KEY_MAX: Final = 255
SCOPES: Final = "scopes"
Opens = dict[str, tuple[Scope, ...]]
PUBLIC: Final[Opens] = {SCOPES: ()}
"""`opt=` of a route that answers everybody."""
RELAY: Final[Opens] = {SCOPES: (Scope.RELAY,)}
"""`opt=` of a route that clients of models use."""
WALLET: Final[Opens] = {SCOPES: (Scope.WALLET,)}
"""`opt=` of a route that reads or moves the caller's own points."""
BILLING: Final[Opens] = {SCOPES: (Scope.WALLET, Scope.RELAY)}
"""`opt=` of a route that says to a relay client what its account has: either scope opens it."""
ADMIN: Final[Opens] = {SCOPES: (Scope.ADMIN,)}
"""`opt=` of a route for administrators."""


def door(callers: Callers | None) -> Guard:
    """The guard of a whole application; without callers only public routes open."""

    async def guard(connection: AnyConnection, handler: BaseRouteHandler) -> None:
        scopes: tuple[Scope, ...] | None = handler.opt.get(SCOPES)
        if scopes == ():
            return
        if callers is None or scopes is None:
            raise MissingScope("This route is closed.")
        connection.state.caller = await callers.of(
            connection.scope["headers"], *scopes, client=connection.scope
        )

    return guard


def api_router(route_handlers: Sequence[Any]) -> Router:
    """All routes of the API: they take what is strict JSON, and are described in OpenAPI."""
    return Router(
        PREFIX,
        route_handlers=list(route_handlers),
        middleware=[strict_requests],
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
