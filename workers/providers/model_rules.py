"""What single models refuse, from `model_rules.json`: data, so that a new model is one line."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Final

import msgspec

from schemas.chat import MAX_TOKENS


class OutputLimitRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models that take their output limit under `name` instead of `max_tokens`."""

    name: str
    exact_or_dash: tuple[str, ...] = ()
    """`o1` stands for `o1` and `o1-mini`, not for `o100`."""
    prefixes: tuple[str, ...] = ()

    def covers(self, model: str) -> bool:
        return model.startswith(self.prefixes) or any(
            model == name or model.startswith(f"{name}-") for name in self.exact_or_dash
        )


class ModelRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as a whole."""

    output_limit: tuple[OutputLimitRule, ...]


def _read() -> ModelRules:
    data = resources.files(__package__ or "workers.providers").joinpath("model_rules.json")
    return msgspec.json.decode(data.read_bytes(), type=ModelRules)


RULES: Final = _read()


@lru_cache(maxsize=4_096)
def output_limit_name(upstream_model: str) -> str:
    """The parameter in which a model takes its output limit; a vendor prefix (`a/b`) is ignored."""
    model = upstream_model.rpartition("/")[2].lower()
    for rule in RULES.output_limit:
        if rule.covers(model):
            return rule.name
    return MAX_TOKENS
