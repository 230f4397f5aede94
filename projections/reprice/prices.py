"""Which prices a what-if applies: read from a file's text, checked against the models there are.

Pure. Amounts are whole nano-points; a factor is applied exactly and rounded up.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, Final

import msgspec

from backend.catalog.price_checks import check_price
from schemas.errors import BadRequest
from schemas.prices import Free, PerCall, PerToken, PerUnit, Price, PriceRef, Rates, Tier, Units

SCALE_MAX: Final = Decimal(1_000_000)
_SCALE_TEXT: Final = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_EXACT: Final = Context(prec=60)

Versions = Mapping[PriceRef, Price]
"""Every price version that ever was."""


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model's price now in force, times a plain decimal number."""

    scale: str


class WhatIf(msgspec.Struct, frozen=True):
    """Other prices by model; what a model's provider takes, by model. Both in nano-points."""

    prices: Mapping[str, Price] = {}
    """A model without an entry keeps the versions that its settlements name."""
    costs: Mapping[str, Price] = {}


CURRENT: Final = WhatIf()
"""The recorded versions themselves."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, Any] = {}
    costs: dict[str, Any] = {}


def parse_what_if(data: bytes, *, toml: bool, current: Mapping[str, Price]) -> WhatIf:
    """The prices of a JSON or TOML file: `{"models": {name: price}, "costs": {name: price}}`.

    A price is what `schemas.prices.Price` is in JSON, or `{"scale": "1.5"}` of `current`, the
    prices now in force. Raises BadRequest, also for a model that never had a price.
    """
    file = _decoded(data, toml=toml)
    if not file.models and not file.costs:
        raise BadRequest("The price file names no model: give `models` or `costs`.")
    return WhatIf(
        {name: _price(name, given, current) for name, given in file.models.items()},
        {name: _price(name, given, current) for name, given in file.costs.items()},
    )


def scaled(price: Price, factor: Decimal) -> Price:
    """The price times a factor ≥ 0, every amount rounded up; windows keep their own factors."""
    if factor == 0:
        return Free()
    match price:
        case Free():
            return price
        case PerCall(call_npt):
            return PerCall(_times(call_npt, factor))
        case PerUnit(units):
            return PerUnit(_units(units, factor))
        case PerToken():
            rates = _rates(price.rates, factor)
            return msgspec.structs.replace(
                price,
                input_npt=rates.input_npt,
                output_npt=rates.output_npt,
                cached_input_npt=rates.cached_input_npt,
                cache_write_npt=rates.cache_write_npt,
                cache_write_1h_npt=rates.cache_write_1h_npt,
                tiers=tuple(
                    Tier(tier.above_input_tokens, _rates(tier.rates, factor))
                    for tier in price.tiers
                ),
                units=_units(price.units, factor),
            )


def _decoded(data: bytes, *, toml: bool) -> _File:
    try:
        raw = tomllib.loads(data.decode()) if toml else msgspec.json.decode(data)
        return msgspec.convert(raw, _File)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The price file cannot be read: {error}.") from error


def _price(model: str, given: Any, current: Mapping[str, Price]) -> Price:
    known = current.get(model)
    if known is None:
        raise BadRequest(f"There is no model {model[:80]!r} with a price on this site.")
    try:
        if isinstance(given, dict) and "scale" in given:
            return scaled(known, _factor(msgspec.convert(given, Scale).scale))
        return check_price(msgspec.convert(given, Price))
    except (msgspec.ValidationError, BadRequest) as error:
        raise BadRequest(f"The price of {model[:80]!r} is none: {_first_line(error)}") from error


def _factor(text: str) -> Decimal:
    if not _SCALE_TEXT.fullmatch(text) or (factor := Decimal(text)) > SCALE_MAX:
        raise BadRequest(f"{text[:40]!r} is no factor; write a plain decimal such as 1.25.")
    return factor


def _rates(rates: Rates, factor: Decimal) -> Rates:
    return Rates(
        _times(rates.input_npt, factor),
        _times(rates.output_npt, factor),
        _optional(rates.cached_input_npt, factor),
        _optional(rates.cache_write_npt, factor),
        _optional(rates.cache_write_1h_npt, factor),
    )


def _units(units: Units, factor: Decimal) -> Units:
    return Units(
        _times(units.image_npt, factor),
        _times(units.second_npt, factor),
        _times(units.character_npt, factor),
        _times(units.search_npt, factor),
    )


def _optional(price_npt: int | None, factor: Decimal) -> int | None:
    return None if price_npt is None else _times(price_npt, factor)


def _times(price_npt: int, factor: Decimal) -> int:
    exact = _EXACT.multiply(Decimal(price_npt), factor)
    return int(exact.to_integral_value(rounding=ROUND_CEILING))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
