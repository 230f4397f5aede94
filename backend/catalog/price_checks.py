"""What an operator may say of a price; else BadRequest with one sentence."""

from __future__ import annotations

from typing import Final

from backend.catalog.checks import check_model
from schemas.errors import BadRequest
from schemas.money import AMOUNT_UPT_MAX
from schemas.prices import PPM, Free, PerCall, PerToken, PerUnit, Price, Rates, Units, Window

TIERS_MAX: Final = 16
WINDOWS_MAX: Final = 16
THRESHOLD_TOKENS_MAX: Final = 1_000_000_000
FACTOR_PPM_MAX: Final = 100 * PPM
DAY_MINUTES: Final = 1_440
OFFSET_MINUTES_MAX: Final = 14 * 60
"""The largest that a clock on earth has, UTC+14."""
PRICE_NPT_MAX: Final = AMOUNT_UPT_MAX


def check_priced_model(model: str, price: Price) -> Price:
    """A model's name and its price. Raises BadRequest."""
    check_model(model)
    return check_price(price)


def check_price(price: Price) -> Price:
    """Amounts are not negative; what costs nothing at all is said to be free."""
    match price:
        case Free():
            return price
        case PerCall(call_npt):
            _check_amounts((call_npt,))
        case PerToken():
            _check_amounts((*_amounts(price), *_unit_amounts(price.units)), price)
            _check_tiers(price)
            _check_windows(price.windows)
        case PerUnit(units):
            _check_amounts(_unit_amounts(units))
    return price


def _check_amounts(amounts: tuple[int, ...], price: PerToken | None = None) -> None:
    dearer = () if price is None else tuple(n for tier in price.tiers for n in _amounts(tier.rates))
    if min(amounts + dearer) < 0:
        raise BadRequest("A price is not negative.")
    if max(amounts + dearer) > PRICE_NPT_MAX:
        raise BadRequest("A price is too large.")
    if not any(amounts + dearer):
        raise BadRequest("A price of nothing is given as free.")


def _amounts(rates: Rates | PerToken) -> tuple[int, ...]:
    """The amounts that are given; what is not costs what input costs."""
    optional = (rates.cached_input_npt, rates.cache_write_npt, rates.cache_write_1h_npt)
    given = tuple(amount for amount in optional if amount is not None)
    return (rates.input_npt, rates.output_npt, *given)


def _unit_amounts(units: Units) -> tuple[int, ...]:
    return units.image_npt, units.second_npt, units.character_npt, units.search_npt


def _check_tiers(price: PerToken) -> None:
    thresholds = [tier.above_input_tokens for tier in price.tiers]
    if len(thresholds) > TIERS_MAX:
        raise BadRequest(f"A price has at most {TIERS_MAX} tiers.")
    if any(not 1 <= tokens <= THRESHOLD_TOKENS_MAX for tokens in thresholds):
        raise BadRequest(f"A tier begins above 1 to {THRESHOLD_TOKENS_MAX} input tokens.")
    if len(set(thresholds)) < len(thresholds):
        raise BadRequest("Two tiers of a price begin above the same number of input tokens.")
    if thresholds != sorted(thresholds):
        raise BadRequest("The tiers of a price are given by rising numbers of input tokens.")


def _check_windows(windows: tuple[Window, ...]) -> None:
    if len(windows) > WINDOWS_MAX:
        raise BadRequest(f"A price has at most {WINDOWS_MAX} windows.")
    for window in windows:
        if not 0 <= window.from_minute < DAY_MINUTES or not 0 < window.to_minute <= DAY_MINUTES:
            raise BadRequest("A window is between 00:00 and 24:00.")
        if window.from_minute == window.to_minute:
            raise BadRequest("A window does not end when it begins; for all day write 00:00-24:00.")
        if abs(window.utc_offset_minutes) > OFFSET_MINUTES_MAX:
            raise BadRequest("A window's offset is between -14:00 and +14:00.")
        if not 0 <= window.factor_ppm <= FACTOR_PPM_MAX:
            raise BadRequest(f"A window's factor is between 0 and {FACTOR_PPM_MAX // PPM}.")
