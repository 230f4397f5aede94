"""Amounts at the edge: decimal text becomes whole micro-points, or is refused."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.money import (
    AMOUNT_UPT_MAX,
    NPT_PER_POINT,
    MoneyError,
    cost_upt,
    format_points,
    format_price_per_1k,
    parse_points,
    parse_price_per_1k,
    parse_price_per_unit,
)

AMOUNTS = st.integers(-AMOUNT_UPT_MAX, AMOUNT_UPT_MAX)


@given(AMOUNTS)
def test_every_amount_is_read_back_from_its_own_text(amount_upt: int) -> None:
    assert parse_points(format_points(amount_upt)) == amount_upt


@given(AMOUNTS)
def test_text_of_an_amount_is_exact_plain_and_trimmed(amount_upt: int) -> None:
    text = format_points(amount_upt)
    assert Fraction(text) == Fraction(amount_upt, 1_000_000)
    assert "e" not in text.lower()
    assert not text.endswith(".")
    if "." in text:
        assert not text.endswith("0")


@pytest.mark.parametrize(
    ("text", "amount_upt"),
    [
        ("0", 0),
        ("-0", 0),
        ("10", 10_000_000),
        ("0.0271", 27_100),
        ("0.000001", 1),
        ("-0.000001", -1),
        ("1.500000000", 1_500_000),
        ("000001", 1_000_000),
        (".5", 500_000),
        ("1000000000", AMOUNT_UPT_MAX),
        ("-1000000000", -AMOUNT_UPT_MAX),
    ],
)
def test_plain_decimal_text_is_read_exactly(text: str, amount_upt: int) -> None:
    value = parse_points(text)
    assert value == amount_upt
    assert type(value) is int


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1 ", " 1", "1\n", "+1", "1e3", "1E3", "0x10", "1_000", "1,5", "1.2.3", "--1",
        "1-", "-", ".", "-.", "NaN", "inf", "-Infinity", "sNaN", "١", "１", "1\x00", "0" * 41,
    ],
)  # fmt: skip
def test_anything_but_a_plain_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_points(text)
    with pytest.raises(MoneyError):
        parse_price_per_unit(text)


@pytest.mark.parametrize(
    "text",
    [
        "0.0000001",
        "1.0000000000000000000000000000000001",
        "0.1234560000000000000000000000000000001",
        "-0.00000000000000000000000000000000001",
        "999999999.9999999999999999999999999999",
    ],
)
def test_more_than_six_decimals_are_refused_however_far_out_they_stand(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_points(text)


@pytest.mark.parametrize("text", ["1000000000.000001", "-1000000000.000001", "9" * 40])
def test_amounts_beyond_the_largest_are_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_points(text)


@given(st.decimals(min_value=0, max_value=100_000, places=30, allow_nan=False))
def test_a_price_is_rounded_up_from_its_exact_value(value: Decimal) -> None:
    text = f"{value:f}"
    exact = Fraction(text)
    per_unit, per_1k = parse_price_per_unit(text), parse_price_per_1k(text)
    assert 0 <= per_unit - exact * NPT_PER_POINT < 1
    assert 0 <= per_1k - exact * (NPT_PER_POINT // 1_000) < 1


def test_the_smallest_crumb_of_a_price_still_rounds_up() -> None:
    assert parse_price_per_unit("1.0000000000000000000000000000000001") == NPT_PER_POINT + 1
    assert parse_price_per_1k("0.0000000000000000000000000000000000001") == 1


@pytest.mark.parametrize("text", ["-1", "-0.000001", "1000001"])
def test_negative_and_enormous_prices_are_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_price_per_unit(text)


@given(st.integers(0, 10**9))
def test_a_price_per_1k_is_read_back_from_its_own_text(price_npt: int) -> None:
    assert parse_price_per_1k(format_price_per_1k(price_npt)) == price_npt


@given(st.integers(0, 10**18))
def test_a_cost_is_rounded_up_once_to_a_whole_micro_point(cost_npt: int) -> None:
    assert 0 <= cost_upt(cost_npt) * 1_000 - cost_npt < 1_000
