"""Moments as the API writes and reads them: ISO 8601 in UTC, to the microsecond. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from schemas.errors import BadRequest

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def iso_text(at_us: int) -> str:
    """`2027-01-31T18:00:00.123456Z` of microseconds since 1970."""
    moment = _EPOCH + timedelta(microseconds=at_us)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z"


def iso_text_or_none(at_us: int | None) -> str | None:
    return None if at_us is None else iso_text(at_us)


def parse_time(text: str) -> int:
    """Microseconds since 1970 of a date (its first moment) or an ISO 8601 time.

    UTC where it has no offset. Raises BadRequest.
    """
    try:
        # A `+` that was not escaped in a query arrives as a blank.
        moment = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            f"{text[:40]!r} is no time: write 2027-01-31 or 2027-01-31T18:00:00Z."
        ) from error
