"""What a model costs, in nano-points per unit. A price version is immutable: a new one is a new
event.
"""

from __future__ import annotations

import msgspec

from schemas.money import MicroPoints, cost_upt
from schemas.usage import Usage


class Free(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="free"):
    """Costs nothing; calls are recorded all the same."""


class PerCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="call"):
    """One amount for a call that produced anything."""

    call_npt: int


class PerToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="token"):
    """Per token, cached input apart; where it is not given, cached input costs what input costs."""

    input_npt: int
    output_npt: int
    cached_input_npt: int | None = None


Price = Free | PerCall | PerToken


class PriceRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names one immutable price version: the model whose price stream it is, and the stream's
    version.
    """

    model: str
    version: int


def cost_of(price: Price, usage: Usage) -> MicroPoints:
    """What `usage` costs under `price`: summed in nano-points, rounded up once."""
    match price:
        case Free():
            return MicroPoints(0)
        case PerCall(call_npt):
            return cost_upt(call_npt)
        case PerToken(input_npt, output_npt, cached_input_npt):
            cached_npt = input_npt if cached_input_npt is None else cached_input_npt
            return cost_upt(
                (usage.input + usage.cache_write) * input_npt
                + usage.cached_input * cached_npt
                + usage.output * output_npt
            )


def minimum_upt(price: Price) -> MicroPoints:
    """Below this much available, a request is refused: nothing, one call, or 1K in + 1K out."""
    match price:
        case Free():
            return MicroPoints(0)
        case PerCall(call_npt):
            return cost_upt(call_npt)
        case PerToken(input_npt, output_npt):
            return cost_upt(1_000 * input_npt + 1_000 * output_npt)
