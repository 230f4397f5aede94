"""The canonical usage record: what a model call consumed, whichever provider said it.

Input is split into disjoint parts; reasoning tokens lie inside `output` (`reference` semantics:
OpenAI's prompt count includes cached tokens, so adapters subtract; nothing here is cumulative).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Basis(StrEnum):
    """Where the figures of a settlement come from."""

    REPORTED = "reported"
    """The upstream's own usage numbers."""
    COUNTED = "counted"
    """Our tokenizer over the request and the text that was received."""
    NONE = "none"
    """Nothing was consumed or the price does not depend on it."""


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units consumed by one call; all counts ≥ 0, tokens unless named otherwise."""

    input: int = 0
    """Uncached input tokens."""
    cached_input: int = 0
    cache_write: int = 0
    """Input written to a cache that lives five minutes, or however long is not said."""
    output: int = 0
    """All output tokens, reasoning included."""
    reasoning: int = 0
    """Part of `output`, for display; never priced on its own."""
    cache_write_1h: int = 0
    """Input written to a cache that lives an hour."""
    images: int = 0
    seconds: int = 0
    """Of sound or film, begun ones counted."""
    characters: int = 0
    """Of text to be spoken."""
    searches: int = 0

    @property
    def input_total(self) -> int:
        return self.input + self.cached_input + self.cache_write + self.cache_write_1h
