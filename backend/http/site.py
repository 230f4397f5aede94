"""Everything that is not hot, on Litestar: status page, health, metrics, models, billing routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from importlib.metadata import version
from typing import Any, Final, Protocol

import msgspec
import structlog
from litestar import Litestar, MediaType, Request, Response, Router, get
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import FromPath, FromQuery
from litestar.status_codes import HTTP_404_NOT_FOUND
from prometheus_client import CollectorRegistry

from backend.http.api.door import BILLING, PUBLIC, RELAY, api_router, caller_of, door
from backend.http.api.own_key import own_key_routes
from backend.http.api.problems import (
    http_problem,
    is_ours,
    refusal,
    request_id_of,
    unforeseen,
)
from backend.http.metrics import CONTENT_TYPE, exposition
from backend.http.pages import status_page
from backend.http.relay.callers import Callers
from backend.http.relay.errors import error_answer
from backend.kit.postgres import DatabaseError, unavailable
from backend.ledger.billing import BillingDoor
from schemas.errors import BadRequest, ModelNotFound, NotFound, SuanpanError

AnyRequest = Request[Any, Any, Any]

DAY_US: Final = 86_400_000_000
_log = structlog.get_logger("http.site")


class Health(msgspec.Struct, frozen=True):
    """`ready`, or why not; and what each part says."""

    status: str
    role: str
    why: tuple[str, ...]
    warnings: tuple[str, ...]
    parts: dict[str, Any]


class ModelList(Protocol):
    def models(self) -> tuple[str, ...]: ...


class Site(msgspec.Struct, frozen=True):
    """What the routes need."""

    role: str
    health: Callable[[], Awaitable[Health]]
    registry: CollectorRegistry


class RelaySite(msgspec.Struct, frozen=True):
    """What the relay's cold routes need beside it."""

    callers: Callers
    models: ModelList
    billing: BillingDoor
    api_routes: Sequence[Any] = ()
    """Route handlers under `/api`, each with the scope that opens it."""


def make_probes(site: Site) -> Litestar:
    """Health and metrics: what every role serves."""
    return _application(_probes(site), None)


def make_site(site: Site, relay: RelaySite) -> Litestar:
    """All routes of a process that answers people and clients."""
    api = api_router([*own_key_routes(), *relay.api_routes])
    routes = [*_probes(site), *_pages(site, relay), *_relay(relay), api]
    return _application(routes, relay.callers)


def _application(handlers: list[Any], callers: Callers | None) -> Litestar:
    return Litestar(
        route_handlers=handlers,
        guards=[door(callers)],
        openapi_config=OpenAPIConfig(
            title="Suanpan",
            version=version("suanpan"),
            # Not below a path of its own: Litestar answers everything there with a page of HTML.
            openapi_router=Router(
                "/api/openapi.json", route_handlers=[], include_in_schema=False, opt=PUBLIC
            ),
            render_plugins=[JsonRenderPlugin(path="/")],
            use_handler_docstrings=True,
            components=Components(
                security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}
            ),
        ),
        include_in_schema=False,
        logging_config=None,
        exception_handlers={
            SuanpanError: _refused,
            DatabaseError: _database_gone,
            HTTPException: _http_error,
            Exception: _unforeseen,
        },
    )


def _probes(site: Site) -> list[Any]:
    @get("/health", opt=PUBLIC)
    async def health() -> Response[Health]:
        found = await site.health()
        return Response(found, status_code=200 if found.status == "ready" else 503)

    @get("/metrics", opt=PUBLIC, sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(exposition(site.registry), headers={"content-type": CONTENT_TYPE})

    return [health, metrics]


def _pages(site: Site, relay: RelaySite) -> list[Any]:
    @get("/", opt=PUBLIC, media_type=MediaType.HTML)
    async def index(request: AnyRequest) -> Response[str]:
        found = await site.health()
        language = request.headers.get("accept-language", "")
        page = status_page(language, found.status, found.parts, relay.models.models())
        return Response(
            page,
            headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    return [index]


def _relay(relay: RelaySite) -> list[Any]:
    @get("/models", opt=RELAY, sync_to_thread=False)
    def list_models(request: AnyRequest) -> dict[str, Any]:
        entry = caller_of(request)
        names = [name for name in relay.models.models() if entry.allows(name)]
        return {"object": "list", "data": [_model(name) for name in names]}

    @get("/models/{name:path}", opt=RELAY, sync_to_thread=False)
    def one_model(request: AnyRequest, name: FromPath[str]) -> dict[str, Any]:
        entry = caller_of(request)
        wanted = name.lstrip("/")
        if not entry.allows(wanted) or wanted not in relay.models.models():
            raise ModelNotFound(f"The model `{wanted[:200]}` does not exist.")
        return _model(wanted)

    @get(["/dashboard/billing/usage", "/v1/dashboard/billing/usage"], opt=BILLING)
    async def usage(
        request: AnyRequest,
        start_date: FromQuery[str | None] = None,
        end_date: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        entry = caller_of(request)
        first_us, last_us = _day_us(start_date, "start_date"), _day_us(end_date, "end_date")
        until_us = None if last_us is None else last_us + DAY_US
        return _json(await relay.billing.usage(entry.account, first_us, until_us))

    @get(["/dashboard/billing/subscription", "/v1/dashboard/billing/subscription"], opt=BILLING)
    async def subscription(request: AnyRequest) -> Response[bytes]:
        entry = caller_of(request)
        return _json(await relay.billing.subscription(entry.account))

    return [Router("/v1", route_handlers=[list_models, one_model]), usage, subscription]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "suanpan"}


def _json(value: dict[str, Any]) -> Response[bytes]:
    return Response(
        msgspec.json.encode(value),
        headers={"content-type": "application/json"},
    )


def _day_us(text: str | None, name: str) -> int | None:
    """Midnight UTC of an ISO date, or of a date-time's day, in microseconds since 1970."""
    if not text:
        return None
    try:
        day = date.fromisoformat(text[:10])
    except ValueError as error:
        raise BadRequest(f"`{name}` must be a date such as 2026-01-31.") from error
    return (day - date(1970, 1, 1)).days * DAY_US


def _refused(request: AnyRequest, error: SuanpanError) -> Response[bytes]:
    if is_ours(request.url.path):
        return refusal(request, error)
    status, headers, body = error_answer(error, request_id_of(request))
    kept = {
        name.decode(): value.decode()
        for name, value in headers
        if name not in (b"content-length", b"x-request-id")
    }
    return Response(body, status_code=status, headers=kept)


def _database_gone(request: AnyRequest, error: Exception) -> Response[bytes]:
    _log.warning("database does not answer", path=request.url.path, error=type(error).__name__)
    return _refused(request, unavailable())


def _unforeseen(request: AnyRequest, error: Exception) -> Response[bytes]:
    request_id = request_id_of(request)
    _log.error("request failed", path=request.url.path, request_id=request_id, exc_info=error)
    return unforeseen(request)


def _problem(problem: dict[str, Any], status: int) -> Response[bytes]:
    return Response(
        msgspec.json.encode(problem),
        status_code=status,
        headers={"content-type": "application/problem+json"},
    )


def _http_error(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """OpenAI's shape under /v1, problem+json (RFC 9457) elsewhere."""
    if is_ours(request.url.path):
        return http_problem(request, error)
    if request.url.path.startswith("/v1/") and error.status_code == HTTP_404_NOT_FOUND:
        return _refused(
            request, NotFound(f"Unknown request URL: {request.method} {request.url.path}")
        )
    problem = {"title": error.detail, "status": error.status_code, "type": "about:blank"}
    return _problem(problem, error.status_code)
