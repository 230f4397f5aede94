"""Where a page of records goes on: cursors that stay right while rows are added. Pure.

A cursor names the last row that was shown; the next page is what lies behind it.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

import msgspec

from backend.ledger.record_filters import ALWAYS_US, LAST_REQUEST, NEWEST_VERSION
from schemas.errors import BadRequest
from schemas.event import Position

CURSOR_CHARS_MAX: Final = 200
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_NUMBER_MAX: Final = 2**62


class StatementPlace(msgspec.Struct, frozen=True):
    """Of an account only the version counts: its history's own order."""

    at_us: int = ALWAYS_US
    stream: str = ""
    version: int = NEWEST_VERSION


class RequestPlace(msgspec.Struct, frozen=True):
    started_us: int = ALWAYS_US
    request_id: str = LAST_REQUEST


def version_of(cursor: str | None) -> int:
    """Behind which version of an account's stream to go on. Raises BadRequest."""
    return NEWEST_VERSION if cursor is None else _number(cursor, cursor)


def statement_place(cursor: str | None, account: str | None) -> StatementPlace:
    """Raises BadRequest."""
    if cursor is None:
        return StatementPlace()
    if account is not None:
        return StatementPlace(version=_number(cursor, cursor))
    at_us, stream, version = _parts(cursor, 3)
    return StatementPlace(_number(at_us, cursor), stream, _number(version, cursor))


def request_place(cursor: str | None) -> RequestPlace:
    """Raises BadRequest."""
    if cursor is None:
        return RequestPlace()
    started_us, request_id = _parts(cursor, 2)
    try:
        return RequestPlace(_number(started_us, cursor), str(UUID(request_id)))
    except ValueError as error:
        raise _wrong(cursor) from error


def log_position(cursor: str | None) -> Position:
    """Raises BadRequest."""
    if cursor is None:
        return Position(2**31 - 1, _NUMBER_MAX, _NUMBER_MAX)
    epoch, xid, seq = (_number(part, cursor) for part in _parts(cursor, 3))
    if epoch > 2**31 - 1:
        raise _wrong(cursor)
    return Position(epoch, xid, seq)


def statement_cursor(account: str | None, at_us: int, stream: str, version: int) -> str:
    return str(version) if account is not None else f"{at_us}.{stream}.{version}"


def request_cursor(started_us: int, request_id: str) -> str:
    return f"{started_us}.{request_id}"


def log_cursor(position: Position) -> str:
    return f"{position.epoch}.{position.xid}.{position.seq}"


def _parts(cursor: str, count: int) -> list[str]:
    parts = cursor.split(".")
    if len(cursor) > CURSOR_CHARS_MAX or len(parts) != count or "\x00" in cursor:
        raise _wrong(cursor)
    return parts


def _number(text: str, cursor: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise _wrong(cursor)
    return int(text)


def _wrong(cursor: str) -> BadRequest:
    return BadRequest(f"`before` is the `next` of a page of the same list, not {cursor[:40]!r}.")
