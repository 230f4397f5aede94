"""Reads a list of prices in a currency and turns it into prices in points. Pure; applies nothing.

What a price version cannot say is left out with its reason, never guessed.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any, Final, cast

import msgspec

from backend.catalog.price_list_row import (
    CNY,
    CannotSay,
    DatedPrice,
    ListMoney,
    RowReader,
    money_of_cny,
    money_of_usd,
)
from schemas.catalog import PriceSource
from schemas.errors import BadRequest
from schemas.money import MoneyError, parse_points
from schemas.prices import PPM

LIST_BYTES_MAX: Final = 8 * 1024 * 1024
MODELS_MAX: Final = 10_000
USD: Final = "USD"
RATE_MAX: Final = 1_000_000
PER_MILLION: Final = "per 1,000,000 tokens"

_DECODER: Final = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


class ListedModel(msgspec.Struct, frozen=True):
    model: str
    prices: tuple[DatedPrice, ...]
    source: PriceSource
    remarks: tuple[str, ...]
    """What the person who reviews it should know."""


class Unsupported(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    reason: str


class PriceList(msgspec.Struct, frozen=True):
    name: str
    as_of: str
    digest: bytes
    """SHA-256 of the list's bytes."""
    currency: str
    points_per_unit: str
    models: tuple[ListedModel, ...]
    unsupported: tuple[Unsupported, ...]


def read_list(data: bytes, name: str, cny_per_usd: str | None, now_us: int) -> PriceList:
    """The list's models in points. `cny_per_usd` is needed where the list is in USD.

    Raises BadRequest where it is no list of prices.
    """
    head = _head(data)
    as_of = str(head.get("as_of", ""))[:32]
    money = money_of_cny() if head["currency"] == CNY else _usd(cny_per_usd)
    models: dict[str, ListedModel] = {}
    unsupported: list[Unsupported] = []
    for row in head["models"]:
        reader = RowReader(_without_suffix(row, f"_{money.currency.lower()}"), money, now_us)
        for model in reader.names():
            try:
                if model in models:
                    raise CannotSay("the list names it twice")
                listed = reader.listed(model)
            except (CannotSay, MoneyError) as error:
                unsupported.append(Unsupported(model, str(error)))
            except BadRequest as error:
                unsupported.append(Unsupported(model, error.sentence))
            else:
                source = listed.money.source(f"{name} {as_of}".strip())
                models[model] = ListedModel(model, listed.prices, source, listed.remarks)
    return PriceList(
        name=name,
        as_of=as_of,
        digest=hashlib.sha256(data).digest(),
        currency=money.currency,
        points_per_unit=money.points_per_unit,
        models=tuple(models.values()),
        unsupported=tuple(unsupported),
    )


def _head(data: bytes) -> dict[str, Any]:
    if len(data) > LIST_BYTES_MAX:
        raise BadRequest(f"A price list has at most {LIST_BYTES_MAX} bytes.")
    try:
        head = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        raise BadRequest("The price list is no JSON object.") from error
    if head.get("currency") not in (USD, CNY) or head.get("unit") != PER_MILLION:
        raise BadRequest(f'A price list says "currency": USD or CNY, and "unit": "{PER_MILLION}".')
    rows = head.get("models")
    if not isinstance(rows, list) or not 1 <= len(cast("list[Any]", rows)) <= MODELS_MAX:
        raise BadRequest(f"A price list names 1 to {MODELS_MAX} models.")
    if not all(isinstance(row, dict) for row in cast("list[Any]", rows)):
        raise BadRequest("Every model of a price list is an object.")
    return head


def _usd(cny_per_usd: str | None) -> ListMoney:
    if cny_per_usd is None:
        raise BadRequest("The list is in USD: say what a dollar is worth with --cny-per-usd 7.12.")
    try:
        rate_ppm = int(parse_points(cny_per_usd))
    except MoneyError:
        rate_ppm = 0
    if not 0 < rate_ppm <= RATE_MAX * PPM:
        raise BadRequest("A rate is a number above 0 with at most six decimals, such as 7.12.")
    return money_of_usd(Decimal(rate_ppm) / PPM)


def _without_suffix(value: Any, suffix: str) -> Any:
    """The same JSON, with the currency taken off the names of its fields."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {k.removesuffix(suffix): _without_suffix(v, suffix) for k, v in fields.items()}
    if isinstance(value, list):
        return [_without_suffix(one, suffix) for one in cast("list[Any]", value)]
    return value
