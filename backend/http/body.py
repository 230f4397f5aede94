"""Reads a request's body within a bound; refuses what two parsers could read differently."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from litestar.types import Receive

from schemas.errors import BadRequest, SuanpanError, TooLarge

BODY_TIMEOUT_S: Final = 120.0
"""From the head of a request to the end of its body."""


class ClientGone(SuanpanError):
    """The client hung up before its request was complete."""

    code = "client_closed_request"
    status = 499


class UnsupportedEncoding(SuanpanError):
    code = "unsupported_content_encoding"
    status = 415
    kind = "invalid_request_error"


class UnsupportedContent(SuanpanError):
    code = "unsupported_content_type"
    status = 415
    kind = "invalid_request_error"


class SlowBody(SuanpanError):
    code = "request_timeout"
    status = 408
    kind = "invalid_request_error"


async def read_body(
    headers: Iterable[tuple[bytes, bytes]],
    receive: Receive,
    bytes_max: int,
    timeout_s: float = BODY_TIMEOUT_S,
) -> bytes:
    """The whole body. Raises TooLarge, BadRequest (length and transfer encoding both given: ASVS
    4.2.1), UnsupportedEncoding, SlowBody, ClientGone."""
    _check_framing(headers, bytes_max)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, bytes_max)
    except TimeoutError:
        raise SlowBody(f"The request body did not arrive within {timeout_s:g} seconds.") from None


def _check_framing(headers: Iterable[tuple[bytes, bytes]], bytes_max: int) -> None:
    length = chunked = None
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"transfer-encoding":
            chunked = value
        elif name == b"content-encoding" and value not in (b"", b"identity"):
            raise UnsupportedEncoding("Compressed request bodies are not supported; send it plain.")
    if length is not None and chunked is not None:
        raise BadRequest("A request has a Content-Length or a Transfer-Encoding, not both.")
    if length is not None and length > bytes_max:
        raise _too_large(bytes_max)


async def _read(receive: Receive, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client hung up.")
        part: bytes = message.get("body", b"")  # type: ignore[assignment]
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {bytes_max} bytes.")
