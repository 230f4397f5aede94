"""Price lists: read in their currency, reviewed beside what is in force, kept unchanged."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.catalog.price import ModelPrice, ScheduledPrice
from backend.catalog.price_checks import check_price
from backend.catalog.price_list import PriceList, read_list
from backend.catalog.price_list_row import DatedPrice
from backend.catalog.price_lists import builtin_list
from backend.catalog.price_proposal import (
    Proposal,
    Status,
    change_words,
    read_proposal,
    review,
    sets_from,
    write_proposal,
)
from schemas.catalog import PriceSource
from schemas.errors import BadRequest, NotFound
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

NOW_US = 1_795_161_600_000_000
"""2026-11-20."""
NEW_YEAR_US = 1_798_761_600_000_000
USD = PriceSource("test 2026-11-20", "USD", "71.2")


def listed(*rows: dict[str, Any], currency: str = "USD", rate: str | None = "7.12") -> PriceList:
    head = {"as_of": "2026-11-20", "currency": currency, "unit": "per 1,000,000 tokens"}
    return read_list(json.dumps({**head, "models": rows}).encode(), "test", rate, NOW_US)


def only_price(row: dict[str, Any]) -> Price:
    found = listed({"name": "m", **row})
    assert not found.unsupported
    assert len(found.models[0].prices) == 1
    return found.models[0].prices[0].price


def reason(row: dict[str, Any]) -> str:
    found = listed({"name": "m", **row})
    assert not found.models
    return found.unsupported[0].reason


def tokens(read: float, written: float, **more: float) -> dict[str, Any]:
    more = {f"{name}_per_million_usd": amount for name, amount in more.items()}
    return {"input_per_million_usd": read, "output_per_million_usd": written, **more}


def test_dollars_per_million_become_points_per_token() -> None:
    assert only_price(tokens(2, 10)) == PerToken(142_400, 712_000)
    assert only_price(
        tokens(3, 15, cached_input=0.3, cache_write=3.75, cache_write_1h=6)
    ) == PerToken(213_600, 1_068_000, 21_360, 267_000, 427_200)
    assert only_price({**tokens(0.13, 0), "mode": "embedding"}) == PerToken(9_256, 0)
    assert only_price({"input_per_million_usd": 0.13, "mode": "embedding"}) == PerToken(9_256, 0)


@given(st.decimals(0, 10_000, places=6), st.decimals("0.01", 1_000, places=4))
def test_a_conversion_is_exact_and_rounds_up_once(amount: Any, rate: Any) -> None:
    row = b'{"name":"m","input_per_million_usd":%s,"output_per_million_usd":1}'
    head = b'{"currency":"USD","unit":"per 1,000,000 tokens","models":[%s]}'
    data = head % (row % str(amount).encode())
    price = read_list(data, "test", f"{rate:f}", NOW_US).models[0].prices[0].price
    assert isinstance(price, PerToken)
    # 10 points a yuan, 10⁹ nano-points a point, a million tokens.
    assert price.input_npt == ceil(Fraction(amount) * Fraction(rate) * 10 * 10**9 / 10**6)


def test_tiers_units_and_calls_are_read() -> None:
    tier = {"above_input_tokens": 200_000, **tokens(4, 15, cached_input=0.4)}
    assert only_price({**tokens(2, 10), "tiers": [tier]}) == PerToken(
        142_400, 712_000, tiers=(Tier(200_000, Rates(284_800, 1_068_000, 28_480)),)
    )
    assert only_price({"per_image_usd": {"any": 0.065}}) == PerUnit(Units(image_npt=4_628_000_000))
    assert only_price({"per_second_usd": 0.0001}) == PerUnit(Units(second_npt=7_120_000))
    assert only_price({"per_million_characters_usd": 15}) == PerUnit(Units(character_npt=1_068_000))
    assert only_price(tokens(0, 0)) == Free()


def test_a_price_at_home_is_taken_where_the_list_has_none_in_its_currency() -> None:
    found = listed(
        {"name": "m", "native": {"currency": "CNY", "input": 0.8, "output": 2, "cached": 0.1}},
        {"name": "n", "native": {"currency": "CNY", "per_call": 0.1}},
        {"name": "o", **tokens(1, 1), "native": {"currency": "CNY", "input": 7, "output": 7}},
    )
    assert [model.prices[0].price for model in found.models] == [
        PerToken(8_000, 20_000, 1_000),
        PerCall(1_000_000_000),
        PerToken(71_200, 71_200),
    ]
    assert [model.source.points_per_unit for model in found.models] == ["10", "10", "71.2"]
    assert [model.source.currency for model in found.models] == ["CNY", "CNY", "USD"]


def test_a_list_in_yuan_needs_no_rate() -> None:
    row = {"name": "m", "input_per_million_cny": 1, "output_per_million_cny": 2}
    found = listed(row, currency="CNY", rate=None)
    assert found.models[0].prices[0].price == PerToken(10_000, 20_000)
    assert (found.currency, found.points_per_unit) == ("CNY", "10")


def test_a_list_in_dollars_needs_a_rate() -> None:
    with pytest.raises(BadRequest, match="--cny-per-usd"):
        listed(tokens(1, 1), rate=None)
    for rate in ("0", "-1", "x", "", "1e3", "1000001"):
        with pytest.raises(BadRequest):
            listed(tokens(1, 1), rate=rate)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "no price is stated"),
        ({"input_per_million_usd": 1}, "only a part"),
        ({**tokens(1, 2), "thinking_output_per_million_usd": 4}, "while it thinks"),
        ({**tokens(1, 2), "image_output_per_million_usd": 4}, "tokens of pictures"),
        ({"per_image_usd": {"1024x1024": 0.02}}, "size or quality"),
        ({"per_image_usd": {"any": 1, "hd": 2}}, "size or quality"),
        ({**tokens(1, 2), "audio_input_per_million_usd": 4}, "audio_input"),
        ({**tokens(1, 2), "tiers": [{"above_input_tokens": 5, "x_usd": 1}]}, "unknown field"),
        ({**tokens(1, 2), "tiers": [{"above_input_tokens": 5}]}, "only a part"),
        ({**tokens(1, 2), "tiers": {"above": 5}}, "cannot be read"),
        ({"native": {"currency": "EUR", "input": 1, "output": 1}}, "another currency"),
        (tokens(-1, 2), "not negative"),
        ({"input_per_million_usd": "NaN", "output_per_million_usd": 1}, "no amount"),
        ({"input_per_million_usd": True, "output_per_million_usd": 1}, "cannot be read"),
        (tokens(1e20, 2), "no amount"),
        ({**tokens(1, 2), "valid_until": "2026-11-18"}, "ended on 2026-11-18"),
        ({**tokens(1, 2), "valid_from": "soon"}, "dates"),
        ({**tokens(1, 2), "name": "a,b"}, "comma"),
        ({**tokens(1, 2), "name": 7}, "cannot be read"),
    ],
)
def test_what_a_price_cannot_say_is_left_out_with_the_reason(
    row: dict[str, Any], words: str
) -> None:
    assert words in reason(row)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"currency":"EUR","unit":"per 1,000,000 tokens","models":[{}]}',
        b'{"currency":"USD","unit":"per token","models":[{}]}',
        b'{"currency":"USD","unit":"per 1,000,000 tokens","models":[]}',
        b'{"currency":"USD","unit":"per 1,000,000 tokens","models":[1]}',
        b"[" * 100_000, b"\xff",
    ],
)  # fmt: skip
def test_what_is_no_price_list_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read_list(data, "test", "7", NOW_US)


def test_a_model_named_twice_and_other_names_are_told_apart() -> None:
    found = listed(
        {"name": "m", **tokens(1, 1), "aliases": ["other"]}, {"name": "m", **tokens(2, 2)}
    )
    assert [(model.model, model.remarks) for model in found.models] == [
        ("m", ()),
        ("other", ("another name of m",)),
    ]
    assert [(one.model, one.reason) for one in found.unsupported] == [
        ("m", "the list names it twice")
    ]


def test_dates_become_times_that_prices_begin_at() -> None:
    following = {"from": "2027-01-01", **tokens(2, 2)}
    row = {"name": "m", **tokens(1, 1, cached_input=0.1), "next_price": following}
    model = listed(row).models[0]
    assert model.prices == (
        DatedPrice(PerToken(71_200, 71_200, 7_120)),
        DatedPrice(PerToken(142_400, 142_400), NEW_YEAR_US),
    )
    assert "cached input is not stated" in model.remarks[0]
    begun = {**row, "next_price": {"from": "2026-11-20", **tokens(2, 2)}}
    assert listed(begun).models[0].prices == (DatedPrice(PerToken(142_400, 142_400)),)
    later = {"name": "m", **tokens(1, 1), "valid_from": "2027-01-01"}
    assert listed(later).models[0].prices[0].effective_us == NEW_YEAR_US
    past = {"name": "m", **tokens(1, 1), "valid_from": "2026-01-01"}
    assert listed(past).models[0].prices[0].effective_us == 0
    ending = listed({"name": "m", **tokens(1, 1), "valid_until": "2026-12-31"}).models[0]
    assert ending.remarks == ("the list says that this price ends on 2026-12-31",)


def test_hours_of_the_day_are_kept_where_a_window_can_say_them() -> None:
    row = {**tokens(0.3, 1.2), "off_peak": tokens(0.15, 0.6)}
    peak = {"timezone": "UTC", "windows": [["01:00", "04:00"], ["22:00", "00:30"]]}
    assert only_price({**row, "peak_window": peak}) == PerToken(
        10_680,
        42_720,
        windows=(Window(60, 240, 0, 2 * PPM), Window(1_320, 30, 0, 2 * PPM)),
    )
    for other in ({**peak, "weekdays": [1]}, {**peak, "excludes": "holidays"}):
        assert only_price({**row, "peak_window": other}) == PerToken(21_360, 85_440)
    uneven = {**tokens(0.3, 1.2), "off_peak": tokens(0.15, 0.5), "peak_window": peak}
    model = listed({"name": "m", **uneven}).models[0]
    assert (model.prices[0].price, "at peak times" in model.remarks[0]) == (
        PerToken(21_360, 85_440),
        True,
    )


def test_the_list_that_comes_with_suanpan_is_read_and_every_price_of_it_can_be_set() -> None:
    found = read_list(builtin_list(), "builtin", "7.12", NOW_US)
    assert found.as_of == "2026-11-20"
    assert len(found.models) > 110
    assert 0 < len(found.unsupported) < 12
    for model in found.models:
        for dated in model.prices:
            check_price(dated.price)
    prices = {model.model: model.prices[0].price for model in found.models}
    assert prices["gpt-6.1-sol"] == PerToken(
        142_400, 712_000, 7_120, 178_000, None,
        (Tier(272_000, Rates(284_800, 1_068_000, 14_240)),),
    )  # fmt: skip


def reviewed(current: dict[str, tuple[int, ModelPrice]]) -> Proposal:
    rows = [{"name": name, **tokens(1, 2)} for name in "abcd"]
    return review(listed(*rows, {"name": "e"}), current, (), NOW_US)


def test_a_review_says_what_is_new_changed_and_the_same() -> None:
    wanted = PerToken(71_200, 142_400)
    waiting = ModelPrice(
        msgspec.structs.replace(wanted, input_npt=1), NEW_YEAR_US, (ScheduledPrice(1, wanted),)
    )
    proposal = reviewed(
        {
            "a": (3, ModelPrice(wanted)),
            "b": (1, ModelPrice(PerToken(71_200, 129_455))),
            "c": (2, waiting),
        }
    )
    assert [(entry.status, entry.base_version, entry.change) for entry in proposal.models] == [
        (Status.SAME, 3, ""),
        (Status.CHANGED, 1, "output +10 %"),
        (Status.CHANGED, 2, "other times"),
        (Status.NEW, 0, ""),
    ]
    assert proposal.models[2].remarks == ("ends prices that wait for their time",)
    assert [entry.model for entry in proposal.sets()] == ["b", "c", "d"]
    assert [entry.model for entry in proposal.sets(("d", "a", "d"))] == ["d"]
    with pytest.raises(NotFound):
        proposal.sets(("e",))


def test_only_named_models_are_reviewed_and_unknown_names_are_refused() -> None:
    prices = listed({"name": "a", **tokens(1, 1)}, {"name": "b"})
    proposal = review(prices, {}, ("b",), NOW_US)
    assert (proposal.models, len(proposal.unsupported)) == ((), 1)
    with pytest.raises(NotFound):
        review(prices, {}, ("z",), NOW_US)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (PerToken(100, 100), PerToken(100, 50), "output -50 %"),
        (PerToken(100, 100, 10), PerToken(101, 101, 20), "cached_input +100 %"),
        (PerToken(100, 300), PerToken(100, 301), "output +0.3 %"),
        (PerCall(1), PerCall(3), "call +200 %"),
        (PerToken(0, 1), PerToken(5, 1), "input was free"),
        (PerCall(1), PerToken(1, 1), "another kind of price"),
        (None, PerCall(1), "another kind of price"),
        (PerToken(1, 1), PerToken(1, 1, units=Units(search_npt=1)), "other parts: search"),
    ],
)
def test_a_change_is_named_by_the_amount_that_moves_most(
    old: Price | None, new: Price, words: str
) -> None:
    assert words in change_words(old, new)


def test_a_proposal_is_accepted_as_it_was_reviewed_or_not_at_all() -> None:
    proposal = reviewed({})
    data = write_proposal(proposal)
    assert read_proposal(data) == proposal
    for old, new in ((b"142400", b"142401"), (b'"a"', b'"z"'), (b"71.2", b"71.3")):
        assert old in data
        with pytest.raises(BadRequest, match="changed after its review"):
            read_proposal(data.replace(old, new, 1))
    for broken in (b"", b"{}", data[:-20], data.replace(b'"models"', b'"others"')):
        with pytest.raises(BadRequest):
            read_proposal(broken)


def test_a_later_beginning_moves_what_would_begin_before_it() -> None:
    following = {"from": "2027-01-01", **tokens(2, 2)}
    prices = listed({"name": "m", **tokens(1, 1), "next_price": following})
    entry = review(prices, {}, (), NOW_US).models[0]
    now, later = (dated.price for dated in entry.prices)
    assert [(one.price, one.effective_us, one.source) for one in sets_from(entry, 0)] == [
        (now, 0, USD),
        (later, NEW_YEAR_US, USD),
    ]
    assert [one.effective_us for one in sets_from(entry, NEW_YEAR_US - 1)] == [
        NEW_YEAR_US - 1,
        NEW_YEAR_US,
    ]
    after = sets_from(entry, NEW_YEAR_US + 1)
    assert [(one.price, one.effective_us) for one in after] == [(later, NEW_YEAR_US + 1)]
