"""A key's quota begins anew at midnight, on Monday or on the first, in UTC."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.ledger.quota import quota_period_us
from schemas.identity import Reset

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
SECONDS = st.integers(4 * 86_400, 430 * 365 * 86_400)
"""From the first Monday of 1970 on."""
MOMENTS = st.builds(
    lambda seconds, us: EPOCH + timedelta(seconds=seconds, microseconds=us),
    SECONDS,
    st.integers(0, 999_999),
)


def us(moment: datetime) -> int:
    return (moment - EPOCH) // US


def at(text: str) -> int:
    return us(datetime.fromisoformat(text).replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("reset", "moment", "began"),
    [
        (Reset.NEVER, "2026-07-15T12:00", "1970-01-01"),
        (Reset.DAILY, "2026-07-15T23:59:59.999999", "2026-07-15"),
        (Reset.DAILY, "2026-07-16T00:00", "2026-07-16"),
        (Reset.WEEKLY, "2026-07-19T23:59:59.999999", "2026-07-13"),
        (Reset.WEEKLY, "2026-07-20T00:00", "2026-07-20"),
        (Reset.WEEKLY, "2027-01-01T00:00", "2026-12-28"),
        (Reset.MONTHLY, "2024-02-29T23:59:59.999999", "2024-02-01"),
        (Reset.MONTHLY, "2024-03-01T00:00", "2024-03-01"),
        (Reset.MONTHLY, "2100-02-28T23:00", "2100-02-01"),
        (Reset.MONTHLY, "2100-03-01T00:00", "2100-03-01"),
    ],
)
def test_a_period_begins_where_the_calendar_says(reset: Reset, moment: str, began: str) -> None:
    assert quota_period_us(reset, at(moment)) == at(began)


@given(MOMENTS)
@example(datetime(2024, 2, 29, 12, tzinfo=UTC))
@example(datetime(2000, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC))
@example(datetime(2100, 3, 1, tzinfo=UTC))
def test_every_moment_lies_in_the_period_that_began_last(moment: datetime) -> None:
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = midnight - timedelta(days=calendar.weekday(*moment.timetuple()[:3]))
    assert quota_period_us(Reset.DAILY, us(moment)) == us(midnight)
    assert quota_period_us(Reset.WEEKLY, us(moment)) == us(monday)
    assert quota_period_us(Reset.MONTHLY, us(moment)) == us(midnight.replace(day=1))
    assert quota_period_us(Reset.NEVER, us(moment)) == 0


@given(MOMENTS, MOMENTS, st.sampled_from(Reset))
def test_periods_follow_one_another_and_begin_in_themselves(
    one: datetime, other: datetime, reset: Reset
) -> None:
    first, last = sorted((us(one), us(other)))
    began = quota_period_us(reset, last)
    assert quota_period_us(reset, first) <= began <= last
    assert quota_period_us(reset, began) == began
