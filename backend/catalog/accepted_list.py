"""The fold of a `pricelist:` stream: what was taken from a list last. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.catalog import PriceListAccepted


class AcceptedList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The list's bytes by their SHA-256, and how many units of prices were taken from lists of this
    name.
    """

    digest: bytes = b""
    units: int = 0


def apply(state: AcceptedList, event: Any, version: int, at_us: int) -> AcceptedList:
    """The list after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, PriceListAccepted):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a price list")
    return AcceptedList(event.digest, state.units + 1)


PRICELIST: Final = Fold("pricelist", AcceptedList(), apply)
