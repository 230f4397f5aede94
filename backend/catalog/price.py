"""The fold of a `price:` stream: the newest price; its version is the stream's. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.catalog import PriceSet
from schemas.prices import Price


class ModelPrice(msgspec.Struct, frozen=True, omit_defaults=True):
    """None: never priced, so the model cannot be called."""

    price: Price | None = None


def apply(state: ModelPrice, event: Any, version: int, at_us: int) -> ModelPrice:
    """The newest price after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, PriceSet):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a price")
    return ModelPrice(event.price)


PRICE: Final = Fold("price", ModelPrice(), apply)
