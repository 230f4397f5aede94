"""What a model costs, in nano-points per unit. A price version is immutable: a new one is a new
event. A cost depends on version, usage and terms, and on nothing else.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.money import NPT_PER_UPT, MicroPoints
from schemas.usage import Usage

PPM: Final = 1_000_000
"""Factors are whole parts per million: 1,000,000 is once the price."""
_MINUTE_US: Final = 60_000_000
_DAY_MINUTES: Final = 1_440


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Per token. What is not given costs what input costs; a 1-hour write what a 5-minute one
    does.
    """

    input_npt: int
    output_npt: int
    cached_input_npt: int | None = None
    cache_write_npt: int | None = None
    """Writing to a prompt cache that lives five minutes."""
    cache_write_1h_npt: int | None = None


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates of the whole request once its input, cached parts included, is longer than this."""

    above_input_tokens: int
    rates: Rates


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time of day, [from, to) in minutes after midnight at a fixed offset; to < from: over
    midnight. The request's admission decides, and the factor applies to all of its cost.
    """

    from_minute: int
    to_minute: int
    utc_offset_minutes: int
    factor_ppm: int


class Units(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is not counted in tokens."""

    image_npt: int = 0
    second_npt: int = 0
    character_npt: int = 0
    search_npt: int = 0


class Free(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="free"):
    """Costs nothing; calls are recorded all the same."""


class PerCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="call"):
    """One amount for a call that produced anything."""

    call_npt: int


class PerToken(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="token"
):
    """Per token, with the same rules as `Rates`; tiers by input length, windows by time of day."""

    input_npt: int
    output_npt: int
    cached_input_npt: int | None = None
    cache_write_npt: int | None = None
    cache_write_1h_npt: int | None = None
    tiers: tuple[Tier, ...] = ()
    """By rising threshold; the last one that the input exceeds counts."""
    windows: tuple[Window, ...] = ()
    """The first one that the time lies in counts."""
    units: Units = Units()

    @property
    def rates(self) -> Rates:
        return Rates(
            self.input_npt,
            self.output_npt,
            self.cached_input_npt,
            self.cache_write_npt,
            self.cache_write_1h_npt,
        )


class PerUnit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unit"):
    """Per image, second, character or search."""

    units: Units


Price = Free | PerCall | PerToken | PerUnit


class PriceRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names one immutable price version: the model whose price stream it is, and the stream's
    version.
    """

    model: str
    version: int


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Under what terms a price version is applied: when the request was let in, and its group."""

    at_us: int = 0
    group: str = ""
    """Empty: no group that was ever defined."""
    group_version: int = 0
    multiplier_ppm: int = PPM


PLAIN_TERMS: Final = Terms()


def cost_of(price: Price, usage: Usage, terms: Terms = PLAIN_TERMS) -> MicroPoints:
    """What `usage` costs: summed in nano-points, multiplied, rounded up once to a micro-point."""
    match price:
        case Free():
            return MicroPoints(0)
        case PerCall(call_npt):
            return _rounded_up(call_npt, terms.multiplier_ppm * PPM)
        case PerToken():
            rates = _rates_for(price, usage.input_total)
            cost_npt = _tokens_npt(rates, usage) + _units_npt(price.units, usage)
            return _rounded_up(cost_npt, _factor(price, terms))
        case PerUnit(units):
            return _rounded_up(_units_npt(units, usage), terms.multiplier_ppm * PPM)


def minimum_upt(price: Price, terms: Terms = PLAIN_TERMS) -> MicroPoints:
    """Below this much available, a request is refused: nothing, one call, 1K in + 1K out, or one
    of each unit.
    """
    match price:
        case PerUnit(units):
            return cost_of(price, _one_of_each(units), terms)
        case _:
            return cost_of(price, Usage(input=1_000, output=1_000), terms)


def bound_upt(
    price: Price, input_bound: int, output_bound: int, terms: Terms = PLAIN_TERMS
) -> MicroPoints:
    """Upper bound of a request's cost: input at its dearest rate, every output token used."""
    match price:
        case PerToken():
            input_npt, output_npt = _dearest(price, input_bound)
            cost_npt = input_bound * input_npt + output_bound * output_npt
            return _rounded_up(cost_npt, _factor(price, terms))
        case Free() | PerCall() | PerUnit():
            return minimum_upt(price, terms)


def affordable_output(
    price: Price, available_upt: int, input_bound: int, terms: Terms = PLAIN_TERMS
) -> int | None:
    """Output tokens that `available_upt` still pays for after the input; None: any number."""
    match price:
        case PerToken():
            input_npt, output_npt = _dearest(price, input_bound)
            factor = _factor(price, terms)
            if output_npt == 0 or factor == 0:
                return None
            payable_npt = available_upt * NPT_PER_UPT * PPM * PPM // factor
            return max(0, (payable_npt - input_bound * input_npt) // output_npt)
        case _:
            return None


def _rounded_up(cost_npt: int, factor: int) -> MicroPoints:
    """`factor` is a product of two factors in parts per million."""
    return MicroPoints(-(-cost_npt * factor // (NPT_PER_UPT * PPM * PPM)))


def _factor(price: PerToken, terms: Terms) -> int:
    for window in price.windows:
        minute = (terms.at_us // _MINUTE_US + window.utc_offset_minutes) % _DAY_MINUTES
        from_minute, to_minute = window.from_minute, window.to_minute
        if from_minute <= to_minute:
            inside = from_minute <= minute < to_minute
        else:
            inside = minute >= from_minute or minute < to_minute
        if inside:
            return terms.multiplier_ppm * window.factor_ppm
    return terms.multiplier_ppm * PPM


def _rates_for(price: PerToken, input_tokens: int) -> Rates | PerToken:
    rates: Rates | PerToken = price
    for tier in price.tiers:
        if input_tokens > tier.above_input_tokens:
            rates = tier.rates
    return rates


def _tokens_npt(rates: Rates | PerToken, usage: Usage) -> int:
    cached_npt, write_npt, write_1h_npt = _input_rates(rates)
    return (
        usage.input * rates.input_npt
        + usage.cached_input * cached_npt
        + usage.cache_write * write_npt
        + usage.cache_write_1h * write_1h_npt
        + usage.output * rates.output_npt
    )


def _input_rates(rates: Rates | PerToken) -> tuple[int, int, int]:
    """Per token that was cached, is written for five minutes, or for an hour."""
    input_npt = rates.input_npt
    cached_npt = input_npt if rates.cached_input_npt is None else rates.cached_input_npt
    write_npt = input_npt if rates.cache_write_npt is None else rates.cache_write_npt
    write_1h_npt = write_npt if rates.cache_write_1h_npt is None else rates.cache_write_1h_npt
    return cached_npt, write_npt, write_1h_npt


def _dearest(price: PerToken, input_bound: int) -> tuple[int, int]:
    """The dearest input and output rates that an input of at most `input_bound` can meet."""
    reachable: list[Rates | PerToken] = [price]
    reachable += [tier.rates for tier in price.tiers if input_bound > tier.above_input_tokens]
    input_npt = max(max(rates.input_npt, *_input_rates(rates)) for rates in reachable)
    return input_npt, max(rates.output_npt for rates in reachable)


def _units_npt(units: Units, usage: Usage) -> int:
    return (
        usage.images * units.image_npt
        + usage.seconds * units.second_npt
        + usage.characters * units.character_npt
        + usage.searches * units.search_npt
    )


def _one_of_each(units: Units) -> Usage:
    return Usage(
        images=min(1, units.image_npt),
        seconds=min(1, units.second_npt),
        characters=min(1, units.character_npt),
        searches=min(1, units.search_npt),
    )
