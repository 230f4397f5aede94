"""Every provider's usage, whole and streamed, as one record; and what that record costs."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.journal.commands import Accept
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.admission import decide_hold
from backend.ledger.decide import decide_settle
from schemas.ids import RequestId
from schemas.ledger import HoldSettled, PointsHeld, ShortfallRecorded
from schemas.plans import Group, OfferedGroup
from schemas.prices import (
    PPM,
    Free,
    PerCall,
    PerToken,
    PerUnit,
    Price,
    Rates,
    Terms,
    Tier,
    Units,
    Window,
    cost_of,
)
from schemas.registry import encode
from schemas.usage import Usage
from tests.given import AT_US, hold_asked, settle_asked, with_upt
from tests.unit.provider_answers import ANSWERS, Told
from workers.providers.usage_shapes import SHAPES, UsageReader

R = RequestId("r")
ABOVE = "above_input_tokens"
TOKENS = st.integers(0, 300_000)
NPT = st.integers(0, 10**8)
RATES = st.builds(Rates, NPT, NPT, st.none() | NPT, st.none() | NPT, st.none() | NPT)
UNITS = st.builds(Units, NPT, NPT, NPT, NPT)
TIERS = st.lists(
    st.builds(Tier, st.integers(1, 300_000), RATES),
    max_size=3,
    unique_by=lambda tier: tier.above_input_tokens,
).map(lambda tiers: tuple(sorted(tiers, key=lambda tier: tier.above_input_tokens)))
WINDOWS = st.lists(
    st.builds(
        Window,
        st.integers(0, 1_439),
        st.integers(1, 1_440),
        st.integers(-840, 840),
        st.integers(0, 3 * PPM),
    ),
    max_size=3,
).map(tuple)
PRICES: st.SearchStrategy[Price] = st.one_of(
    st.just(Free()),
    st.builds(PerCall, NPT),
    st.builds(PerUnit, UNITS),
    st.builds(
        PerToken, NPT, NPT, st.none() | NPT, st.none() | NPT, st.none() | NPT, TIERS, WINDOWS, UNITS
    ),
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Anything a model call may report, but nothing at all."""
    output = draw(st.integers(1, 200_000))
    return Usage(
        input=draw(TOKENS),
        cached_input=draw(TOKENS),
        cache_write=draw(TOKENS),
        output=output,
        reasoning=draw(st.integers(0, output)),
        cache_write_1h=draw(TOKENS),
        searches=draw(st.integers(0, 9)),
    )


def read_whole(told: Told) -> Usage | None:
    reader = UsageReader(SHAPES[told.shape])
    reader.see(told.whole)
    return reader.usage


def read_stream(told: Told) -> Usage | None:
    reader = UsageReader(SHAPES[told.shape])
    for frame in told.frames:
        reader.see(frame)
    return reader.usage


@pytest.mark.parametrize("answer", ANSWERS)
@settings(max_examples=60)
@given(usage=usages(), price=PRICES)
def test_a_call_costs_the_same_streamed_and_whole(
    answer: Callable[[Usage], Told], usage: Usage, price: Price
) -> None:
    told = answer(usage)
    whole, streamed = read_whole(told), read_stream(told)
    assert whole is not None
    assert streamed is not None
    assert whole == streamed == told.usage
    assert cost_of(price, whole) == cost_of(price, streamed) >= 0


@pytest.mark.parametrize("answer", ANSWERS)
@settings(max_examples=60)
@given(usage=usages())
def test_disjoint_parts_sum_to_the_providers_own_total(
    answer: Callable[[Usage], Told], usage: Usage
) -> None:
    told = answer(usage)
    found = read_stream(told)
    assert found is not None
    assert found.input_total + found.output == told.total
    assert found.reasoning <= found.output
    assert min(msgspec.structs.astuple(found)) >= 0


def test_every_provider_that_reports_tokens_is_tried() -> None:
    media = {"openai-images", "openai-transcription"}
    tried = {answer(Usage(output=1)).shape for answer in ANSWERS}
    assert tried == set(SHAPES) - media


FIELDS = (
    "usage", "usageMetadata", "message", "response", "Response", "Usage", "payload", "text",
    "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "choices", "data",
    "cache_creation", "total_tokens", "promptTokenCount", "seconds", "type",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 2 * 10**9) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(SHAPES)), st.lists(JSON, max_size=3))
def test_whatever_a_provider_sends_is_read_or_left(shape: str, frames: list[Any]) -> None:
    reader = UsageReader(SHAPES[shape])
    for frame in frames:
        reader.see(frame)
    if reader.usage is not None:
        assert min(msgspec.structs.astuple(reader.usage)) >= 0


def test_pictures_and_sound_are_counted() -> None:
    def read(shape: str, answer: dict[str, Any]) -> Usage | None:
        reader = UsageReader(SHAPES[shape])
        reader.see(answer)
        return reader.usage

    wire = {"input_tokens": 50, "output_tokens": 272, "total_tokens": 322}
    details = {"text_tokens": 10, "image_tokens": 40}
    images = {"data": [{}, {}], "usage": {**wire, "input_tokens_details": details}}
    assert read("openai-images", images) == Usage(input=50, output=272, images=2)
    assert read("openai-images", {"data": [{}]}) == Usage(images=1)
    done = {"type": "image_generation.completed", "b64_json": "", "usage": wire}
    assert read("openai-images", done) == Usage(input=50, output=272, images=1)
    heard = {"usage": {"type": "duration", "seconds": 7.2}}
    assert read("openai-transcription", heard) == Usage(seconds=8)
    assert read("openai-transcription", {"usage": {"type": "duration", "seconds": True}}) is None
    assert read("openai-transcription", {"usage": {"type": "tokens", **wire}}) == Usage(
        input=50, output=272
    )
    assert read("openai", {"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}) == Usage(
        input=8
    )


def settled_by(
    state: Account, price: Price, usage: Usage, group: Group
) -> tuple[list[Any], Account]:
    """A hold and its settlement: the events, and the account after them."""
    asked = msgspec.structs.replace(hold_asked(R, price), groups={"normal": OfferedGroup(group, 3)})
    held = decide_hold(state, 2, asked, AT_US)
    if not isinstance(held, Accept):
        return [], state
    events = [event for _, event in held.events]
    if not isinstance(events[0], PointsHeld):
        return [], state
    state = ACCOUNT.apply(state, events[0], 3, AT_US)
    settled = decide_settle(state, settle_asked(R, price, usage))
    assert isinstance(settled, Accept)
    for version, (_, event) in enumerate(settled.events, 4):
        events.append(event)
        state = ACCOUNT.apply(state, event, version, AT_US)
    return events, state


@settings(max_examples=200)
@given(st.sampled_from(ANSWERS), usages(), PRICES, st.integers(0, 2 * PPM), st.integers(0, 10**10))
def test_a_charge_recomputes_from_the_stored_statement(
    answer: Callable[[Usage], Told], usage: Usage, price: Price, multiplier_ppm: int, granted: int
) -> None:
    """From the bytes of the event and the price version alone; and no point is lost on the way."""
    before = with_upt(granted)
    told = read_stream(answer(usage))
    assert told is not None
    events, after = settled_by(before, price, told, Group(multiplier_ppm))
    charged = 0
    for event in events:
        if not isinstance(event, HoldSettled):
            continue
        stored = msgspec.json.decode(encode(event), type=HoldSettled)
        fallen_short = sum(e.amount_upt for e in events if isinstance(e, ShortfallRecorded))
        due = cost_of(price, stored.usage, stored.terms)
        assert due == stored.amount_upt + fallen_short
        assert stored.terms == Terms(AT_US, "normal", 3, multiplier_ppm)
        charged += stored.amount_upt
    assert before.posted_upt - after.posted_upt == charged
    assert (after.held_upt, after.available_upt) == (0, after.posted_upt)


@given(PRICES, usages(), st.integers(0, 3 * PPM), st.integers(0, 2 * 10**15))
def test_a_cost_is_the_exact_sum_rounded_up_once(
    price: Price, usage: Usage, multiplier_ppm: int, at_us: int
) -> None:
    """Beside a reckoning in fractions that shares no code with the ledger's."""
    terms = Terms(at_us=at_us, multiplier_ppm=multiplier_ppm)
    exact = exact_npt(price, usage, at_us) * Fraction(multiplier_ppm, PPM)
    assert cost_of(price, usage, terms) == ceil(exact / 1_000)


def exact_npt(price: Price, usage: Usage, at_us: int) -> Fraction:
    match price:
        case Free():
            return Fraction(0)
        case PerCall(call_npt):
            return Fraction(call_npt)
        case PerUnit(units):
            return Fraction(usage.searches * units.search_npt)
        case PerToken():
            rates = price.rates
            for tier in sorted(price.tiers, key=lambda tier: tier.above_input_tokens):
                if usage.input_total >= tier.above_input_tokens + 1:
                    rates = tier.rates
            write = rates.input_npt if rates.cache_write_npt is None else rates.cache_write_npt
            hour = write if rates.cache_write_1h_npt is None else rates.cache_write_1h_npt
            cached = rates.input_npt if rates.cached_input_npt is None else rates.cached_input_npt
            sum_npt = (
                usage.input * rates.input_npt
                + usage.cached_input * cached
                + usage.cache_write * write
                + usage.cache_write_1h * hour
                + usage.output * rates.output_npt
                + usage.searches * price.units.search_npt
            )
            return sum_npt * exact_factor(price.windows, at_us)


def exact_factor(windows: tuple[Window, ...], at_us: int) -> Fraction:
    """Minute by minute: a window is the minutes from its first on, up to its last."""
    for window in windows:
        minute = (at_us // 60_000_000 + window.utc_offset_minutes) % 1_440
        length = (window.to_minute - window.from_minute) % 1_440 or (
            1_440 if window.to_minute != window.from_minute else 0
        )
        if (minute - window.from_minute) % 1_440 < length:
            return Fraction(window.factor_ppm, PPM)
    return Fraction(1)


class TestGolden:
    """Worked by hand. Points per 1,000 tokens: 1 in, 5 out, 0.1 cached, 1.25 and 2 written."""

    PRICE = PerToken(1_000_000, 5_000_000, 100_000, 1_250_000, 2_000_000)

    def test_cache_writes_cost_their_own_price_by_how_long_they_live(self) -> None:
        told = {
            "usage": {
                "input_tokens": 21,
                "cache_read_input_tokens": 1_000,
                "cache_creation_input_tokens": 3_000,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 2_000,
                    "ephemeral_1h_input_tokens": 1_000,
                },
                "output_tokens": 7,
            }
        }
        usage = SHAPES["anthropic"].read(told)
        assert usage is not None
        # 0.021 in, 0.1 cached, 2.5 for five minutes, 2 for an hour, 0.035 out.
        assert cost_of(self.PRICE, usage) == 4_656_000

    def test_cached_tokens_of_a_picture_are_not_billed_twice(self) -> None:
        told = {
            "usageMetadata": {
                "promptTokenCount": 2_000,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 500},
                    {"modality": "IMAGE", "tokenCount": 1_500},
                ],
                "cachedContentTokenCount": 1_500,
                "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": 1_500}],
                "candidatesTokenCount": 10,
                "thoughtsTokenCount": 90,
                "totalTokenCount": 2_100,
            }
        }
        usage = SHAPES["gemini"].read(told)
        assert usage is not None
        assert usage == Usage(input=500, cached_input=1_500, output=100, reasoning=90)
        # 0.5 in, 0.15 cached, 0.5 out: thoughts are output.
        assert cost_of(self.PRICE, usage) == 1_150_000

    def test_a_tier_begins_one_above_its_threshold_and_counts_cached_input(self) -> None:
        tier = Tier(100_000, Rates(2_000_000, 10_000_000, 200_000))
        price = PerToken(1_000_000, 5_000_000, 100_000, tiers=(tier,))
        at, above = (Usage(input=n, cached_input=60_000, output=1) for n in (40_000, 40_001))
        assert cost_of(price, at) == 40_000_000 + 6_000_000 + 5_000
        assert cost_of(price, above) == 80_002_000 + 12_000_000 + 10_000

    @pytest.mark.parametrize(
        ("utc", "cost"),
        [
            ((13, 59), 1_000_000),
            ((14, 0), 500_000),
            ((15, 59), 500_000),
            ((16, 0), 500_000),
            ((21, 59), 500_000),
            ((22, 0), 1_000_000),
        ],
    )
    def test_a_window_over_midnight_holds_from_its_first_minute_up_to_its_last(
        self, utc: tuple[int, int], cost: int
    ) -> None:
        """22:00 to 06:00 at +08:00 is 14:00 to 22:00 UTC; midnight there is 16:00 UTC."""
        night = Window(22 * 60, 6 * 60, 8 * 60, PPM // 2)
        price = PerToken(1_000_000, 5_000_000, windows=(night,))
        at_us = (20_000 * 1_440 + utc[0] * 60 + utc[1]) * 60_000_000
        assert cost_of(price, Usage(input=1_000), Terms(at_us=at_us)) == cost

    def test_multiplier_and_window_are_rounded_once_together(self) -> None:
        half_all_day = Window(0, 1_440, 0, PPM // 2)
        price = PerToken(1_001, 1, windows=(half_all_day,))
        # 1,001 nano-points × 0.5 × 0.999 = 0.4999995 micro-points; twice rounded it would be 1 + 1.
        assert cost_of(price, Usage(input=1), Terms(multiplier_ppm=999_000)) == 1
        # 2,000 × 1,001 × 0.4995 = 999,999 nano-points exactly: 1,000 micro-points, not 1,001.
        assert cost_of(price, Usage(input=2_000), Terms(multiplier_ppm=999_000)) == 1_000

    def test_pictures_seconds_characters_and_searches_are_priced_each(self) -> None:
        price = PerUnit(Units(4_628_000_000, 7_120_000, 1_068_000, 712_000_000))
        usage = Usage(images=2, seconds=10, characters=1_000, searches=3)
        assert cost_of(price, usage) == 9_256_000 + 71_200 + 1_068_000 + 2_136_000
        mixed = PerToken(1_000_000, 5_000_000, units=Units(search_npt=712_000_000))
        assert cost_of(mixed, Usage(input=1_000, searches=1)) == 1_712_000
