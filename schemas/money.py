"""Points as integers: micro-points (`_upt`) for amounts, nano-points (`_npt`) for prices per unit.

10 points are 1 CNY, always. No float comes near: the edge reads and writes decimal strings.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from typing import Final, NewType

MicroPoints = NewType("MicroPoints", int)
NanoPoints = NewType("NanoPoints", int)

UPT_PER_POINT: Final = 1_000_000
NPT_PER_POINT: Final = 1_000_000_000
NPT_PER_UPT: Final = 1_000
POINTS_PER_CNY: Final = 10
AMOUNT_UPT_MAX: Final = 10**15
"""A thousand million points: above it an amount is a typing error, and sums stay far below
2**63.
"""

_TEXT_CHARS_MAX: Final = 40
_EXACT: Final = Context(prec=60)
"""Holds every digit of a text and of what it is multiplied by: Python's default of 28 rounds."""


class MoneyError(ValueError):
    """The text is no amount this ledger can hold exactly."""


def parse_points(text: str) -> MicroPoints:
    """Micro-points of a plain decimal string such as `10` or `0.0271`.

    Raises MoneyError for anything else, for more than six decimals and beyond AMOUNT_UPT_MAX.
    """
    value = _decimal(text)
    scaled = _EXACT.multiply(value, Decimal(UPT_PER_POINT))
    if scaled != scaled.to_integral_value():
        raise MoneyError(f"{text!r} has more than six decimals; the smallest unit is 0.000001")
    if abs(scaled) > AMOUNT_UPT_MAX:
        raise MoneyError(f"{text!r} is too large; at most {AMOUNT_UPT_MAX // UPT_PER_POINT} points")
    return MicroPoints(int(scaled))


def format_points(amount_upt: int) -> str:
    """The plain decimal string of an amount, trailing zeros trimmed: 27_100 → `0.0271`."""
    sign = "-" if amount_upt < 0 else ""
    whole, rest = divmod(abs(amount_upt), UPT_PER_POINT)
    if rest == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{rest:06d}".rstrip("0")


def parse_price_per_unit(text: str) -> NanoPoints:
    """Nano-points of a price in points per one unit (call, image, second), rounded up."""
    return _price(text, NPT_PER_POINT)


def parse_price_per_1k(text: str) -> NanoPoints:
    """Nano-points per token of a price in points per 1,000 tokens, rounded up."""
    return _price(text, NPT_PER_POINT // 1_000)


def format_price_per_1k(price_npt: int) -> str:
    """Points per 1,000 tokens of a price in nano-points per token."""
    return format_points(price_npt)


def cost_upt(cost_npt: int) -> MicroPoints:
    """Micro-points of a request's sum in nano-points: rounded up once, to one micro-point."""
    return MicroPoints(-(-cost_npt // NPT_PER_UPT))


def _price(text: str, factor: int) -> NanoPoints:
    value = _decimal(text)
    if value < 0:
        raise MoneyError(f"{text!r}: a price is not negative")
    exact = _EXACT.multiply(value, Decimal(factor))
    scaled = int(exact.to_integral_value(rounding=ROUND_CEILING))
    if scaled > AMOUNT_UPT_MAX:
        raise MoneyError(f"{text!r} is too large for a price")
    return NanoPoints(scaled)


def _decimal(text: str) -> Decimal:
    if len(text) > _TEXT_CHARS_MAX or not text.isascii() or text.strip("-0123456789."):
        raise MoneyError(f"{text[:_TEXT_CHARS_MAX]!r} is not a plain decimal number")
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise MoneyError(f"{text!r} is not a plain decimal number") from error
