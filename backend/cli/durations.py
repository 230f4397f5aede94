"""When something expires or begins, as people write it: a date, a time, how long from now. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from schemas.errors import BadRequest

_DURATION: Final = re.compile(r"([0-9]{1,6})([mhdwy])")
_UNITS: Final = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_expiry(text: str, now_us: int) -> int:
    """Microseconds since 1970 of `30d`, `12h`, `2027-01-31` (its end, UTC) or an ISO 8601 time.

    A time without an offset is UTC. Raises BadRequest.
    """
    try:
        duration = _DURATION.fullmatch(text.strip())
        if duration:
            span = int(duration[1]) * _UNITS[duration[2]]
            return now_us + span // timedelta(microseconds=1)
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        if len(text.strip()) == len("2027-01-31"):
            moment += timedelta(days=1)
        return (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            f"{text[:40]!r} is no time: write 30d, 12h, 2027-01-31 or 2027-01-31T18:00+08:00."
        ) from error


def parse_begin(text: str, now_us: int) -> int:
    """Microseconds since 1970 of a time to come: `2027-01-31` (its first moment, UTC) or an
    ISO 8601 time, UTC where it has no offset. Raises BadRequest.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        begin_us = (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            f"{text[:40]!r} is no time: write 2027-01-31 or 2027-01-31T18:00+08:00."
        ) from error
    if begin_us <= now_us:
        raise BadRequest(f"{text[:40]!r} is in the past.")
    return begin_us
