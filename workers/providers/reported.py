"""Usage as OpenAI-shaped answers report it → the canonical record, and the rules all shapes share.

Numbers that cannot be true are not used.
"""

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
    cached ones `prompt_cache_hit_tokens`, older Moonshot builds `cached_tokens` beside the sums.
    An embedding has no `completion_tokens`, but a total that says so.
    """
    numbers = dict_of(wire)
    prompt, total = count_of(numbers.get("prompt_tokens")), count_of(numbers.get("total_tokens"))
    output = count_of(numbers.get("completion_tokens"))
    if output is None and "completion_tokens" not in numbers and total == prompt:
        output = 0
    if prompt is None or output is None:
        return None
    details = dict_of(numbers.get("prompt_tokens_details"))
    return split(
        prompt,
        output,
        cached=first_count(
            details.get("cached_tokens"),
            numbers.get("prompt_cache_hit_tokens"),
            numbers.get("cached_tokens"),
        ),
        written=written_of(details),
        reasoning=first_count(
            dict_of(numbers.get("completion_tokens_details")).get("reasoning_tokens")
        ),
        total=total,
        searches=searches_of(numbers),
    )


def split(
    prompt: int,
    output: int,
    *,
    cached: int = 0,
    written: int = 0,
    reasoning: int = 0,
    total: int | None = None,
    searches: int = 0,
) -> Usage | None:
    """Disjoint parts of a `prompt` that includes cached and written tokens; None if all is zero.

    Reasoning lies inside `output`, except where the provider's own total shows that it came on top
    (xAI; Gemini's OpenAI dialect, which does not even say how much).
    """
    if total is not None and total > prompt + output:
        reasoning = max(reasoning, total - prompt - output)
        output = total - prompt
    if prompt + output == 0:
        return None
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    return Usage(
        input=prompt - cached - written,
        cached_input=cached,
        cache_write=written,
        output=output,
        reasoning=min(reasoning, output),
        searches=searches,
    )


def written_of(details: dict[str, Any]) -> int:
    """Tokens written to a cache: OpenAI's name, or the one of Qwen's explicit caches."""
    return first_count(
        details.get("cache_write_tokens"), details.get("cache_creation_input_tokens")
    )


def searches_of(numbers: dict[str, Any]) -> int:
    """Searches that a model of DashScope's made by itself."""
    return first_count(dict_of(dict_of(numbers.get("plugins")).get("search")).get("count"))


def first_count(*values: object) -> int:
    """The first value that is a count; 0 if none is."""
    return next((count for value in values if (count := count_of(value)) is not None), 0)


def count_of(value: object) -> int | None:
    """A whole number of tokens; JSON's true, strings, fractions and absurd sizes are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= TOKENS_MAX else None


def dict_of(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
