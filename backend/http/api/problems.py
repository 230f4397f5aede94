"""Refusals of our own API as problem details (RFC 9457): a stable code and a sentence to show."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from schemas.errors import SuanpanError

AnyRequest = Request[Any, Any, Any]

PREFIX: Final = "/api"
REQUEST_ID: Final = "request_id"
"""Key of a request's id in its ASGI scope's state."""
INTERNAL_SENTENCE: Final = "Something went wrong on our side; the request id finds it in our logs."
MEDIA_TYPE: Final = "application/problem+json"
REASON_CHARS_MAX: Final = 200
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every refusal of `/api` looks like; `code` never changes, `detail` may."""

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"
    errors: list[Any] = []
    """Where a body or a query is wrong: field and reason."""
    request_id: str = ""
    """What our logs call the request."""


def is_ours(path: str) -> bool:
    """Whether a path belongs to this API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def request_id_of(request: AnyRequest) -> str:
    """What our logs and the header `x-request-id` call a request; empty: it has no name."""
    return cast("dict[str, Any]", request.scope).get("state", {}).get(REQUEST_ID, "")


def refusal(request: AnyRequest, error: SuanpanError) -> Response[bytes]:
    """The answer to a request that was refused."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _answer(request, error.status, error.code, error.sentence, headers)


def unforeseen(request: AnyRequest) -> Response[bytes]:
    """The answer where we failed; the log has the rest."""
    return _answer(request, 500, "internal_error", INTERNAL_SENTENCE, {})


def http_problem(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """What the framework refused: an unknown path or method, or input of another shape."""
    code = _CODES.get(error.status_code)
    if code is None:
        code = "invalid_request" if error.status_code < 500 else "internal_error"
    errors = [_short(one) for one in error.extra] if isinstance(error.extra, list) else []
    headers = dict(error.headers or {})
    return _answer(request, error.status_code, code, error.detail, headers, errors)


def _short(error: Any) -> Any:
    """A reason quotes what was sent, which may be long."""
    if not isinstance(error, dict):
        return str(error)[:REASON_CHARS_MAX]
    members = cast("dict[str, Any]", error)
    return {name: str(value)[:REASON_CHARS_MAX] for name, value in members.items()}


def _answer(
    request: AnyRequest,
    status: int,
    code: str,
    detail: str,
    headers: dict[str, str],
    errors: list[Any] | None = None,
) -> Response[bytes]:
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Refused"
    problem = Problem(
        title, status, code, detail, errors=errors or [], request_id=request_id_of(request)
    )
    return Response(
        msgspec.json.encode(problem),
        status_code=status,
        headers={**headers, "content-type": MEDIA_TYPE},
    )
