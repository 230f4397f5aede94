"""Prices as operators write them: tiers, windows, units, factors; and what is refused."""

from __future__ import annotations

import pytest

from backend.catalog.price_checks import TIERS_MAX, WINDOWS_MAX, check_price
from backend.catalog.price_text import (
    format_per_unit,
    format_ppm,
    parse_ppm,
    parse_tier,
    parse_window,
    price_data,
    price_words,
    window_text,
)
from schemas.errors import BadRequest
from schemas.prices import (
    PPM,
    Free,
    PerCall,
    PerToken,
    PerUnit,
    Price,
    Rates,
    Tier,
    Units,
    Window,
)

NIGHT = Window(22 * 60, 6 * 60, 8 * 60, PPM // 2)
TIER = Tier(100, Rates(2, 2))


@pytest.mark.parametrize(
    ("price", "words"),
    [
        (PerCall(-1), "not negative"),
        (PerCall(0), "given as free"),
        (PerCall(10**15 + 1), "too large"),
        (PerToken(0, 0), "given as free"),
        (PerToken(1, 1, -1), "not negative"),
        (PerToken(1, 1, None, -1), "not negative"),
        (PerToken(1, 1, None, None, -1), "not negative"),
        (PerToken(1, 1, tiers=(Tier(1, Rates(1, -1)),)), "not negative"),
        (PerToken(1, 1, units=Units(search_npt=-1)), "not negative"),
        (PerUnit(Units()), "given as free"),
        (PerUnit(Units(image_npt=-1)), "not negative"),
        (PerUnit(Units(image_npt=-1, second_npt=5)), "not negative"),
        (PerToken(1, 1, tiers=(TIER, TIER)), "the same number"),
        (PerToken(1, 1, tiers=(TIER, Tier(50, Rates(3, 3)))), "rising numbers"),
        (PerToken(1, 1, tiers=(Tier(0, Rates(3, 3)),)), "begins above 1"),
        (
            PerToken(1, 1, tiers=tuple(Tier(n, Rates(1, 1)) for n in range(1, TIERS_MAX + 2))),
            f"at most {TIERS_MAX} tiers",
        ),
        (PerToken(1, 1, windows=(Window(1_440, 5, 0, PPM),)), "between 00:00 and 24:00"),
        (PerToken(1, 1, windows=(Window(-1, 5, 0, PPM),)), "between 00:00 and 24:00"),
        (PerToken(1, 1, windows=(Window(0, 1_441, 0, PPM),)), "between 00:00 and 24:00"),
        (PerToken(1, 1, windows=(Window(7, 7, 0, PPM),)), "does not end when it begins"),
        (PerToken(1, 1, windows=(Window(0, 60, 15 * 60, PPM),)), "-14:00 and +14:00"),
        (PerToken(1, 1, windows=(Window(0, 60, 0, -1),)), "factor is between"),
        (PerToken(1, 1, windows=(Window(0, 60, 0, 101 * PPM),)), "factor is between"),
        (PerToken(1, 1, windows=(NIGHT,) * (WINDOWS_MAX + 1)), f"at most {WINDOWS_MAX} windows"),
    ],
)
def test_a_price_that_cannot_be_is_refused_with_the_reason(price: Price, words: str) -> None:
    with pytest.raises(BadRequest, match=words.replace("+", r"\+")):
        check_price(price)


@pytest.mark.parametrize(
    "price",
    [
        Free(),
        PerCall(1),
        PerToken(0, 1),
        PerToken(0, 0, units=Units(search_npt=1)),
        PerToken(0, 0, tiers=(Tier(1, Rates(0, 1)),)),
        PerToken(1, 2, 0, 3, 4, (TIER, Tier(101, Rates(3, 3))), (NIGHT, Window(0, 1_440, 0, 0))),
        PerUnit(Units(image_npt=1, second_npt=2, character_npt=3, search_npt=4)),
    ],
)
def test_a_price_that_can_be_is_kept_as_it_is(price: Price) -> None:
    assert check_price(price) is price


def test_a_tier_is_read_as_tokens_and_points_per_thousand() -> None:
    assert parse_tier("272000:0.2:1.5") == Tier(272_000, Rates(200_000, 1_500_000))
    assert parse_tier("1:1:2:0.5::4") == Tier(
        1, Rates(1_000_000, 2_000_000, 500_000, None, 4_000_000)
    )


@pytest.mark.parametrize(
    "text", ["", "1", "1:2", "x:1:2", "-1:1:2", "1:1:2:3:4:5:6", "1:a:2", "1:-1:2", "1::2", "1:2:"]
)
def test_what_is_no_tier_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_tier(text)


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("22:00-06:00@+08:00=0.5", NIGHT),
        ("00:00-24:00@Z=2", Window(0, 1_440, 0, 2 * PPM)),
        ("18:30-00:00@-03:30=0.000001", Window(1_110, 1_440, -210, 1)),
    ],
)
def test_a_window_is_a_time_of_day_at_an_offset_and_a_factor(text: str, window: Window) -> None:
    assert parse_window(text) == window
    assert parse_window(window_text(window)) == window


@pytest.mark.parametrize(
    "text",
    [
        "", "22:00-06:00", "22:00-06:00=0.5", "22-06@Z=1", "24:00-06:00@Z=1", "22:60-06:00@Z=1",
        "22:00-24:01@Z=1", "22:00-06:00@+8=1", "22:00-06:00@Z=-1", "22:00-06:00@Z=0.0000001",
        "22:00-06:00@Z=1.2.3", "22:00-06:00@Asia/Shanghai=1",
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_window(text)


def test_factors_are_whole_parts_per_million() -> None:
    assert parse_ppm("0.8") == 800_000
    assert parse_ppm("1") == PPM
    assert format_ppm(1_250_000) == "1.25"
    for text in ("-1", "0.0000001", "1e3", "half", ""):
        with pytest.raises(BadRequest):
            parse_ppm(text)


def test_amounts_are_written_exactly_to_the_smallest_part() -> None:
    assert format_per_unit(1) == "0.000000001"
    assert format_per_unit(1_068_000) == "0.001068"
    assert format_per_unit(10**9) == "1"
    assert price_data(PerCall(1_500)) == {"unit": "call", "per_call": "0.0000015"}


def test_every_part_of_a_price_is_shown() -> None:
    price = PerToken(
        142_400, 712_000, 7_120, 178_000, 284_800,
        (Tier(272_000, Rates(284_800, 1_068_000)),), (NIGHT,), Units(search_npt=10**8),
    )  # fmt: skip
    assert price_data(price) == {
        "unit": "token",
        "per_1k_input": "0.1424",
        "per_1k_output": "0.712",
        "per_1k_cached_input": "0.00712",
        "per_1k_cache_write": "0.178",
        "per_1k_cache_write_1h": "0.2848",
        "tiers": [
            {
                "above_input_tokens": 272_000,
                "per_1k_input": "0.2848",
                "per_1k_output": "1.068",
                "per_1k_cached_input": "0.2848",
            }
        ],
        "windows": ["22:00-06:00@+08:00=0.5"],
        "per_search": "0.1",
    }
    words = price_words(price)
    for part in ("0.1424", "0.712", "0.00712", "0.178", "0.2848", "272000", "22:00", "0.1 points"):
        assert part in words
    assert price_words(PerUnit(Units(image_npt=10**9, second_npt=1))) == (
        "1 points per image + 0.000000001 points per second"
    )
