"""What the API reads of a request: whole within bounds, and only what no two parsers read
differently. The shape of a body is the route's own matter.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn, cast
from urllib.parse import parse_qsl, unquote_to_bytes

from litestar.types import ASGIApp, HTTPReceiveMessage, Receive, Scope, Send

from backend.http.body import UnsupportedContent, read_body
from schemas.errors import BadRequest

BODY_BYTES_MAX: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 30.0
DEPTH_MAX: Final = 32
INTEGER_CHARS_MAX: Final = 20
"""What a signed 64-bit number needs."""
_JSON: Final = b"application/json"
_NUL: Final = "\x00"


def strict_requests(app: ASGIApp) -> ASGIApp:
    """Middleware of a router. A body is looked at when the route reads it, after its guard."""

    async def strict(scope: Scope, receive: Receive, send: Send) -> None:
        _check_address(scope)
        await app(scope, _checked_body(scope, receive), send)

    return strict


def check_json(body: bytes) -> None:
    """Refuses what parsers disagree on (RFC 8259 §4, §6, §8; ASVS 1.5.3): names that come twice,
    NaN, numbers beyond 64 bits, NUL and lone surrogates; and what only costs: deep nesting.
    """
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_int=_integer,
            parse_float=_fraction,
        )
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise BadRequest("The request body is not valid UTF-8.") from None
    except json.JSONDecodeError:
        raise BadRequest("The request body is not valid JSON.") from None
    _check_texts(value)


def _checked_body(scope: Scope, receive: Receive) -> Receive:
    is_read = False

    async def checked() -> Any:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        body = await read_body(scope["headers"], receive, BODY_BYTES_MAX, BODY_TIMEOUT_S)
        if body:
            _check_type(scope)
            check_json(body)
        message: HTTPReceiveMessage = {"type": "http.request", "body": body, "more_body": False}
        return message

    return checked


def _check_type(scope: Scope) -> None:
    given = [value for name, value in scope["headers"] if name == b"content-type"]
    if len(given) != 1 or given[0].partition(b";")[0].strip().lower() != _JSON:
        raise UnsupportedContent("Send the body as JSON: `Content-Type: application/json`.")


def _check_address(scope: Scope) -> None:
    """A path and a query are UTF-8 without NUL, and no parameter comes twice (ASVS 15.3.7)."""
    try:
        path = unquote_to_bytes(scope["raw_path"]).decode()
        query = unquote_to_bytes(scope["query_string"]).decode()
    except UnicodeDecodeError:
        raise BadRequest("The address is not valid UTF-8.") from None
    if _NUL in path or _NUL in query:
        raise BadRequest("The address has a NUL in it.")
    names = [name for name, _ in parse_qsl(scope["query_string"], keep_blank_values=True)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadRequest(f"`{twice.decode()[:40]}` is given more than once.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("The request body gives a name more than once in one object.")
    return found


def _integer(text: str) -> int:
    if len(text) > INTEGER_CHARS_MAX or not -(2**63) <= int(text) < 2**63:
        raise BadRequest("The request body has a whole number that is too large.")
    return int(text)


def _fraction(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise BadRequest("The request body has a number that is too large.")
    return number


def _no_number(text: str) -> NoReturn:
    raise BadRequest(f"{text} is no number in JSON.")


def _check_texts(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH_MAX):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                _check_text(one)
            elif isinstance(one, dict):
                members = cast("dict[str, Any]", one)
                inner.extend((*members, *members.values()))
            elif isinstance(one, list):
                inner.extend(cast("list[Any]", one))
        if not inner:
            return
        level = inner
    raise _too_deep()


def _check_text(text: str) -> None:
    if _NUL in text:
        raise BadRequest("The request body has a text with a NUL in it.")
    try:
        _ = text.encode()
    except UnicodeEncodeError:
        raise BadRequest("The request body has half of a surrogate pair.") from None


def _too_deep() -> BadRequest:
    return BadRequest("The request body is nested too deeply.")
