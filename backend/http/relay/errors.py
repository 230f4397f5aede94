"""Errors in OpenAI's shape. The sentence comes from our own error tree; nothing else is shown."""

from __future__ import annotations

from backend.http.api.problems import INTERNAL_SENTENCE
from schemas.errors import RateLimited, SuanpanError
from schemas.openai import error_body


def error_answer(
    error: SuanpanError, request_id: str
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """(status, headers, body) of a refusal or failure."""
    body = error_body(sentence=error.sentence, kind=error.kind, code=error.code)
    headers = json_headers(body, request_id)
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
        if isinstance(error, RateLimited) and error.limit is not None:
            headers += rate_headers(error.limit, 0, error.retry_after_s)
    if not error.retriable:
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, body


def internal_answer(request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """(500, headers, body) for what nobody foresaw."""
    body = error_body(sentence=INTERNAL_SENTENCE, kind="server_error", code="internal_error")
    return 500, json_headers(body, request_id), body


def rate_headers(limit: int, left: int, reset_s: int) -> list[tuple[bytes, bytes]]:
    """The three fields of draft-ietf-httpapi-ratelimit-headers-06 §3; the reset in seconds."""
    return [
        (b"ratelimit-limit", b"%d" % limit),
        (b"ratelimit-remaining", b"%d" % left),
        (b"ratelimit-reset", b"%d" % reset_s),
    ]


def json_headers(body: bytes, request_id: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
