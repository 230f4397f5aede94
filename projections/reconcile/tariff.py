"""What a provider takes per token, as an operator writes it down to check a bill's costs. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from projections.reconcile.bill import Used
from projections.reconcile.names import family_of
from schemas.errors import BadRequest

PER_TOKENS: Final = 1_000_000


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In the bill's currency per `per_tokens`; what is not given costs what input costs."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None


class Tariff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{"currency": "USD", "models": {"gpt-4o": {"input": "2.50", "output": "10"}}}`."""

    models: Mapping[str, Rate]
    currency: str = ""
    per_tokens: int = PER_TOKENS

    def cost(self, model: str, used: Used) -> Decimal | None:
        """None: the model has no rate here."""
        rate = self.models.get(model) or self.models.get(family_of(model))
        if rate is None:
            return None
        cached = rate.input if rate.cached_input is None else rate.cached_input
        write = rate.input if rate.cache_write is None else rate.cache_write
        sum_of = (
            (used.uncached or 0) * rate.input
            + (used.cached or 0) * cached
            + (used.cache_write or 0) * write
            + (used.output or 0) * rate.output
        )
        return sum_of / self.per_tokens


NO_TARIFF: Final = Tariff({})


def parse_tariff(data: bytes, *, toml: bool) -> Tariff:
    """A JSON or TOML file of a Tariff's shape; numbers may be strings. Raises BadRequest."""
    try:
        if toml:
            raw: Any = tomllib.loads(data.decode(), parse_float=Decimal)
            tariff = msgspec.convert(raw, Tariff)
        else:
            tariff = msgspec.json.decode(data, type=Tariff)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The costs file cannot be read: {error}.") from error
    amounts = [
        amount
        for rate in tariff.models.values()
        for amount in (rate.input, rate.output, rate.cached_input, rate.cache_write)
        if amount is not None
    ]
    if tariff.per_tokens < 1 or any(not amount.is_finite() or amount < 0 for amount in amounts):
        raise BadRequest("The costs file holds prices ≥ 0 per one token or more.")
    return tariff
