"""Usage as providers report it → the canonical record. Numbers that cannot be true are not used."""

from __future__ import annotations

from typing import Any, Final, cast

from schemas.openai import WireAnswer
from schemas.usage import Usage

TOKENS_MAX: Final = 10**9
"""Beyond it a count is a defect of the provider, not a bill."""


def usage_of_answer(answer: WireAnswer) -> Usage | None:
    """The usage of a chunk or answer, wherever this provider puts it; None where there is none."""
    found = usage_of(answer.usage)
    if found is None and isinstance(answer.x_groq, dict):
        found = usage_of(cast("dict[str, Any]", answer.x_groq).get("usage"))
    if found is None and answer.choices:
        found = usage_of(answer.choices[0].usage)
    return found


def usage_of(wire: object) -> Usage | None:
    """OpenAI-shaped numbers → Usage. None where they are missing, absurd or all zero.

    `prompt_tokens` includes cached and written tokens, which are taken out of it; DeepSeek names
    cached ones `prompt_cache_hit_tokens`. Reasoning lies inside `completion_tokens`, except where
    the provider's own total shows that it counted it on top (xAI).
    """
    if not isinstance(wire, dict):
        return None
    numbers = cast("dict[str, Any]", wire)
    prompt = _count(numbers.get("prompt_tokens"))
    output = _count(numbers.get("completion_tokens"))
    if prompt is None or output is None or prompt + output == 0:
        return None
    prompt_details = _dict(numbers.get("prompt_tokens_details"))
    cached = _count(prompt_details.get("cached_tokens"))
    if cached is None:
        cached = _count(numbers.get("prompt_cache_hit_tokens")) or 0
    cached = min(cached, prompt)
    written = min(_count(prompt_details.get("cache_write_tokens")) or 0, prompt - cached)
    output_details = _dict(numbers.get("completion_tokens_details"))
    reasoning = _count(output_details.get("reasoning_tokens")) or 0
    if reasoning and _count(numbers.get("total_tokens")) == prompt + output + reasoning:
        output += reasoning
    return Usage(
        input=prompt - cached - written,
        cached_input=cached,
        cache_write=written,
        output=output,
        reasoning=min(reasoning, output),
    )


def _count(value: object) -> int | None:
    """A whole number of tokens; JSON's true, strings, fractions and absurd sizes are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= TOKENS_MAX else None


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
