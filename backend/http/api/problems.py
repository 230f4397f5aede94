"""Refusals of our own API as problem details (RFC 9457): a stable code and a sentence to show."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from schemas.errors import SuanpanError

PREFIX: Final = "/api"
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


def is_ours(path: str) -> bool:
    """Whether a path belongs to this API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def refusal(error: SuanpanError) -> Response[bytes]:
    """The answer to a request that was refused."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _answer(error.status, error.code, error.sentence, headers)


def http_problem(error: HTTPException) -> Response[bytes]:
    """What the framework refused: an unknown path or method, or input of another shape."""
    code = _CODES.get(error.status_code)
    if code is None:
        code = "invalid_request" if error.status_code < 500 else "internal_error"
    errors = [_short(one) for one in error.extra] if isinstance(error.extra, list) else []
    return _answer(error.status_code, code, error.detail, dict(error.headers or {}), errors)


def _short(error: Any) -> Any:
    """A reason quotes what was sent, which may be long."""
    if not isinstance(error, dict):
        return str(error)[:REASON_CHARS_MAX]
    members = cast("dict[str, Any]", error)
    return {name: str(value)[:REASON_CHARS_MAX] for name, value in members.items()}


def _answer(
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
    problem = Problem(title, status, code, detail, errors=errors or [])
    return Response(
        msgspec.json.encode(problem),
        status_code=status,
        headers={**headers, "content-type": MEDIA_TYPE},
    )
