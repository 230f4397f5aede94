"""Counting in windows: what is admitted, what is left, what survives and what is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.kit.rates import ACTIVE_US, DAY, MINUTE, OPEN_LIVES_US, Counter, Counters, Period

NOON_US = 1_800_000_000_000_000 // DAY.length_us * DAY.length_us + DAY.length_us // 2
SECOND_US = 1_000_000


def counter(period: Period | None = MINUTE) -> Counter:
    return Counters("p").use("name", period, NOON_US)


def admitted(one: Counter, limit: int, now_us: int) -> bool:
    """What a caller does: look, then count."""
    if one.total(now_us) >= limit:
        return False
    one.add(1, now_us)
    return True


@given(
    limit=st.integers(1, 20),
    steps_us=st.lists(st.integers(0, 40 * SECOND_US), min_size=1, max_size=200),
    others=st.integers(0, 5),
)
def test_no_window_ever_admits_more_than_its_limit(
    limit: int, steps_us: list[int], others: int
) -> None:
    one, now_us, per_window = counter(), NOON_US, {}
    for step_us in steps_us:
        now_us += step_us
        window = now_us // MINUTE.length_us
        one.total(now_us)
        one.heard(others, one.window, one.own, now_us)
        if admitted(one, limit, now_us):
            per_window[window] = per_window.get(window, 0) + 1
    assert all(count + others <= limit for count in per_window.values())


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "correct", "wait"]), st.integers(-50, 50)), max_size=100
    )
)
def test_a_count_is_never_negative_whatever_is_taken_back(steps: list[tuple[str, int]]) -> None:
    one, now_us = counter(), NOON_US
    window = one.add(10, now_us)
    for what, amount in steps:
        match what:
            case "take":
                window = one.add(amount, now_us)
            case "correct":
                one.correct(amount, window, now_us)
            case _:
                now_us += abs(amount) * SECOND_US
        assert one.total(now_us) >= 0


def test_a_minute_begins_at_the_full_minute_and_a_day_at_midnight_utc() -> None:
    minute, day = counter(MINUTE), counter(DAY)
    assert minute.resets_in_us(NOON_US + 12 * SECOND_US) == 48 * SECOND_US
    assert day.resets_in_us(NOON_US) == 12 * 3600 * SECOND_US
    minute.add(5, NOON_US)
    assert minute.total(NOON_US + 60 * SECOND_US - 1) == 5
    assert minute.total(NOON_US + 60 * SECOND_US) == 0


def test_a_clock_that_steps_back_does_not_open_a_window_again() -> None:
    one = counter()
    one.add(3, NOON_US)
    assert one.total(NOON_US - 1) == 3
    assert one.add(1, NOON_US - SECOND_US) == one.window
    assert one.total(NOON_US) == 4


def test_less_is_corrected_only_in_its_own_window_and_more_counts_now() -> None:
    one = counter()
    window = one.add(100, NOON_US)
    later_us = NOON_US + MINUTE.length_us
    one.correct(-100, window, later_us)
    assert one.total(later_us) == 0
    one.add(40, later_us)
    one.correct(-100, window, later_us)
    assert one.total(later_us) == 40, "what another window gave back is not this one's"
    one.correct(7, window, later_us)
    assert one.total(later_us) == 47


def test_what_others_counted_counts_until_the_window_ends() -> None:
    one = counter()
    one.add(2, NOON_US)
    one.heard(5, one.window, 2, NOON_US)
    assert (one.total(NOON_US), one.unsaid, one.known) == (7, 0, True)
    one.add(1, NOON_US)
    assert one.unsaid == 1
    assert one.total(NOON_US + MINUTE.length_us) == 0


def test_an_answer_about_an_earlier_window_changes_nothing() -> None:
    one = counter()
    window = one.add(2, NOON_US)
    one.heard(50, window, 2, NOON_US + MINUTE.length_us)
    assert one.total(NOON_US + MINUTE.length_us) == 0


def test_what_a_dead_process_had_open_is_forgotten() -> None:
    one = counter(None)
    one.add(1, NOON_US)
    one.heard(3, one.window, 1, NOON_US)
    assert one.total(NOON_US + OPEN_LIVES_US) == 4
    assert one.total(NOON_US + OPEN_LIVES_US + 1) == 1


def test_counters_are_bounded_and_what_is_open_is_kept() -> None:
    counters = Counters("p", count_max=10)
    counters.use("open", None, NOON_US).add(1, NOON_US)
    for number in range(100):
        counters.use(f"n{number}", MINUTE, NOON_US).add(1, NOON_US)
    assert len(counters) <= 11
    assert counters.use("open", None, NOON_US).own == 1
    assert counters.use("n99", MINUTE, NOON_US).own == 1
    assert counters.use("n0", MINUTE, NOON_US).own == 0
    assert len(counters.active(NOON_US)) <= 12


def test_a_counter_made_again_has_a_field_of_its_own() -> None:
    """What was said under the old one still counts, as if another process had said it."""
    counters = Counters("p", count_max=1)
    first = counters.use("a", MINUTE, NOON_US)
    counters.use("b", MINUTE, NOON_US)
    again = counters.use("a", MINUTE, NOON_US)
    assert again is not first
    assert again.field != first.field


def test_idle_counters_are_not_exchanged_but_open_and_unsaid_ones_are() -> None:
    counters = Counters("p")
    said = counters.use("said", DAY, NOON_US)
    said.add(1, NOON_US)
    said.heard(0, said.window, 1, NOON_US)
    counters.use("unsaid", DAY, NOON_US).add(1, NOON_US)
    is_open = counters.use("open", None, NOON_US)
    is_open.add(1, NOON_US)
    is_open.heard(0, is_open.window, 1, NOON_US)
    later_us = NOON_US + ACTIVE_US + 1
    assert {one.name for one in counters.active(later_us)} == {"unsaid", "open"}
    is_open.add(-1, later_us)
    is_open.heard(0, is_open.window, 0, later_us)
    assert {one.name for one in counters.active(later_us)} == {"unsaid"}
    assert counters.active(NOON_US + DAY.length_us) == [], "its window is over"
