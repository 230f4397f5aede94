"""What a call costs: summed in nano-points, rounded up once; cached input apart."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from schemas.prices import (
    Free,
    PerCall,
    PerToken,
    Price,
    affordable_output,
    bound_upt,
    cost_of,
    minimum_upt,
)
from schemas.usage import Usage

NPT = st.integers(0, 10**8)
TOKENS = st.integers(0, 2_000_000)
USAGE = st.builds(
    Usage,
    input=TOKENS,
    cached_input=TOKENS,
    cache_write=TOKENS,
    output=TOKENS,
    reasoning=TOKENS,
)
PER_TOKEN = st.builds(PerToken, NPT, NPT, st.none() | NPT)
PRICES: st.SearchStrategy[Price] = st.just(Free()) | st.builds(PerCall, NPT) | PER_TOKEN


@given(PER_TOKEN, USAGE)
def test_a_call_is_rounded_up_once_from_the_exact_sum(price: PerToken, usage: Usage) -> None:
    cached = price.input_npt if price.cached_input_npt is None else price.cached_input_npt
    exact_npt = Fraction(
        usage.input * price.input_npt
        + usage.cache_write * price.input_npt
        + usage.cached_input * cached
        + usage.output * price.output_npt
    )
    assert cost_of(price, usage) == ceil(exact_npt / 1_000)


def test_many_crumbs_round_up_together_and_not_one_by_one() -> None:
    price = PerToken(input_npt=1, output_npt=1)
    assert cost_of(price, Usage(input=1)) == 1
    assert cost_of(price, Usage(input=500, output=500)) == 1
    assert cost_of(price, Usage(input=501, output=500)) == 2


def test_cached_input_costs_its_own_price_and_cache_writes_cost_input() -> None:
    price = PerToken(input_npt=10_000, output_npt=40_000, cached_input_npt=1_000)
    assert cost_of(price, Usage(cached_input=1_000)) == 1_000
    assert cost_of(price, Usage(cache_write=1_000)) == 10_000
    free = PerToken(input_npt=10_000, output_npt=40_000, cached_input_npt=0)
    assert cost_of(free, Usage(cached_input=1_000)) == 0


def test_cached_input_without_a_price_of_its_own_costs_what_input_costs() -> None:
    price = PerToken(input_npt=10_000, output_npt=40_000)
    assert cost_of(price, Usage(cached_input=7)) == cost_of(price, Usage(input=7))


@given(PRICES, USAGE)
def test_reasoning_is_part_of_output_and_never_priced_again(price: Price, usage: Usage) -> None:
    plain = Usage(usage.input, usage.cached_input, usage.cache_write, usage.output)
    assert cost_of(price, usage) == cost_of(price, plain)


@given(USAGE)
def test_a_call_price_does_not_depend_on_tokens_and_free_is_free(usage: Usage) -> None:
    assert cost_of(PerCall(1_500), usage) == 2
    assert cost_of(Free(), usage) == 0


def test_the_minimum_is_nothing_one_call_or_a_thousand_tokens_each_way() -> None:
    assert minimum_upt(Free()) == 0
    assert minimum_upt(PerCall(1_500)) == 2
    assert minimum_upt(PerToken(100_000, 200_000)) == 300_000
    assert minimum_upt(PerToken(0, 0)) == 0


@given(PRICES, TOKENS, TOKENS, st.data())
def test_no_usage_within_its_bounds_costs_more_than_the_hold_bound(
    price: Price, input_bound: int, output_bound: int, data: st.DataObject
) -> None:
    """Whatever share of the input was cached or written to the cache."""
    cached = data.draw(st.integers(0, input_bound))
    written = data.draw(st.integers(0, input_bound - cached))
    usage = Usage(
        input=input_bound - cached - written,
        cached_input=cached,
        cache_write=written,
        output=data.draw(st.integers(0, output_bound)),
    )
    assert cost_of(price, usage) <= bound_upt(price, input_bound, output_bound)


@given(PER_TOKEN, st.integers(0, 10**12), st.integers(0, 100_000))
def test_affordable_output_is_the_most_that_available_points_pay_for(
    price: PerToken, available_upt: int, input_bound: int
) -> None:
    output = affordable_output(price, available_upt, input_bound)
    if output is None:
        assert price.output_npt == 0
    elif output > 0:
        assert bound_upt(price, input_bound, output) <= available_upt
        assert bound_upt(price, input_bound, output + 1) > available_upt
    else:
        assert bound_upt(price, input_bound, 1) > available_upt


def test_output_that_costs_nothing_is_unlimited() -> None:
    assert affordable_output(Free(), 0, 10) is None
    assert affordable_output(PerCall(5), 0, 10) is None
    assert affordable_output(PerToken(1, 0), 0, 10) is None
