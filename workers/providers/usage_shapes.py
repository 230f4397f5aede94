"""Where each wire format reports usage, whole and streamed, as the canonical record. Pure.

Nothing is added up over a stream: every format repeats its sums, and the last ones count.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isfinite
from typing import Any, Final, cast

import msgspec

from schemas.openai import WireAnswer
from schemas.usage import Usage
from workers.providers.reported import (
    count_of,
    dict_of,
    first_count,
    searches_of,
    split,
    usage_of,
    usage_of_answer,
    written_of,
)


class UsageShape(msgspec.Struct, frozen=True):
    """One wire format."""

    name: str
    read: Callable[[object], Usage | None]
    """The usage of a whole answer or of one frame, as decoded JSON; None where there is none."""
    join: Callable[[object, object], object] = lambda before, frame: frame
    """What was seen, and the next frame that reports something, as one."""


class UsageReader:
    """The usage of an answer, frame by frame; a whole answer is one frame.

    Before the answer has ended, `usage` is what was reported so far, and its output is not whole.
    """

    __slots__ = ("_seen", "_shape", "usage")

    def __init__(self, shape: UsageShape) -> None:
        self._shape = shape
        self._seen: object = None
        self.usage: Usage | None = None

    def see(self, frame: object) -> None:
        joined = self._shape.join(self._seen, frame)
        usage = self._shape.read(joined)
        if usage is not None:
            self._seen, self.usage = joined, usage


def usage_of_chat(frame: object) -> Usage | None:
    """OpenAI's chat completions, and all who speak like them."""
    try:
        return usage_of_answer(msgspec.convert(frame, WireAnswer))
    except msgspec.ValidationError:
        return None


def usage_of_responses(frame: object) -> Usage | None:
    """OpenAI's Responses: an object, or the event that ends a stream and holds it."""
    answer = dict_of(frame)
    return _by_input_and_output(dict_of(answer.get("response") or answer).get("usage"))


def usage_of_images(frame: object) -> Usage | None:
    """OpenAI's images: how many, and tokens where the model counts them."""
    answer = dict_of(frame)
    data = answer.get("data")
    images = len(cast("list[Any]", data)) if isinstance(data, list) else 0
    if answer.get("type") in ("image_generation.completed", "image_edit.completed"):
        images = 1
    tokens = _by_input_and_output(answer.get("usage"))
    if tokens is None:
        return Usage(images=images) if images else None
    return msgspec.structs.replace(tokens, images=images)


def usage_of_transcription(frame: object) -> Usage | None:
    """OpenAI's transcriptions: tokens, or seconds of sound, of which begun ones count."""
    usage = dict_of(dict_of(frame).get("usage"))
    if usage.get("type") != "duration":
        return _by_input_and_output(usage)
    seconds = usage.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return Usage(seconds=ceil(seconds)) if isfinite(seconds) and 0 < seconds < 10**7 else None


def usage_of_anthropic(frame: object) -> Usage | None:
    """Anthropic's messages: uncached, read and written input lie beside one another.

    `cache_creation` splits what was written by how long it lives.
    """
    usage = _anthropic_numbers(frame)
    read, output = count_of(usage.get("input_tokens")), count_of(usage.get("output_tokens"))
    if read is None or output is None:
        return None
    lives = dict_of(usage.get("cache_creation"))
    hour = first_count(lives.get("ephemeral_1h_input_tokens"))
    minutes = first_count(lives.get("ephemeral_5m_input_tokens"))
    written = first_count(usage.get("cache_creation_input_tokens"), hour + minutes)
    hour = min(hour, written)
    details = dict_of(usage.get("output_tokens_details"))
    thought = first_count(details.get("thinking_tokens"), details.get("reasoning_tokens"))
    tools = dict_of(usage.get("server_tool_use"))
    found = Usage(
        input=read,
        cached_input=first_count(usage.get("cache_read_input_tokens")),
        cache_write=written - hour,
        output=output,
        reasoning=min(thought, output),
        cache_write_1h=hour,
        searches=first_count(tools.get("web_search_requests")),
    )
    return found if found.input_total + found.output else None


def usage_of_gemini(frame: object) -> Usage | None:
    """`usageMetadata`: cached content lies inside the prompt, prompts of tools and thoughts
    come on top.
    """
    usage = dict_of(dict_of(frame).get("usageMetadata"))
    prompt = count_of(usage.get("promptTokenCount"))
    if prompt is None:
        return None
    thoughts = first_count(usage.get("thoughtsTokenCount"))
    return split(
        prompt + first_count(usage.get("toolUsePromptTokenCount")),
        first_count(usage.get("candidatesTokenCount")) + thoughts,
        cached=min(first_count(usage.get("cachedContentTokenCount")), prompt),
        reasoning=thoughts,
        total=count_of(usage.get("totalTokenCount")),
    )


def usage_of_dashscope(frame: object) -> Usage | None:
    """DashScope's own format: sums in every frame."""
    return _by_input_and_output(dict_of(frame).get("usage"))


def usage_of_tencent(frame: object) -> Usage | None:
    """Hunyuan's own format, wrapped in `Response` where it is not streamed."""
    answer = dict_of(frame)
    usage = dict_of(dict_of(answer.get("Response") or answer).get("Usage"))
    prompt, output = count_of(usage.get("PromptTokens")), count_of(usage.get("CompletionTokens"))
    if prompt is None or output is None:
        return None
    cached = first_count(dict_of(usage.get("PromptTokensDetails")).get("CachedTokens"))
    return split(prompt, output, cached=cached, total=count_of(usage.get("TotalTokens")))


def usage_of_spark(frame: object) -> Usage | None:
    """Spark's WebSocket frames; only the last one reports."""
    payload = dict_of(dict_of(frame).get("payload"))
    return usage_of(dict_of(payload.get("usage")).get("text"))


def usage_of_ollama(frame: object) -> Usage | None:
    """Ollama's own lines; the one that is done reports. A cached prompt may be left out of it."""
    line = dict_of(frame)
    output = count_of(line.get("eval_count"))
    if line.get("done") is not True or output is None:
        return None
    return split(first_count(line.get("prompt_eval_count")), output)


def _by_input_and_output(wire: object) -> Usage | None:
    """`input_tokens`, which includes what was cached, and `output_tokens`."""
    usage = dict_of(wire)
    read, output = count_of(usage.get("input_tokens")), count_of(usage.get("output_tokens"))
    if read is None or output is None:
        return None
    details = dict_of(usage.get("input_tokens_details") or usage.get("prompt_tokens_details"))
    reasoning = dict_of(usage.get("output_tokens_details")).get("reasoning_tokens")
    return split(
        read,
        output,
        cached=first_count(details.get("cached_tokens")),
        written=written_of(details),
        reasoning=first_count(reasoning),
        total=count_of(usage.get("total_tokens")),
        searches=searches_of(usage),
    )


def _anthropic_numbers(frame: object) -> dict[str, Any]:
    """Of a message, of the event that begins one, or of one that goes on."""
    answer = dict_of(frame)
    return dict_of(answer.get("usage")) or dict_of(dict_of(answer.get("message")).get("usage"))


def _anthropic_joined(before: object, frame: object) -> object:
    """Later sums take the place of earlier ones; what an event does not say stays."""
    newer = {k: v for k, v in _anthropic_numbers(frame).items() if v is not None}
    return {"usage": {**_anthropic_numbers(before), **newer}}


CHAT: Final = UsageShape("openai chat", usage_of_chat)
RESPONSES: Final = UsageShape("openai responses", usage_of_responses)
IMAGES: Final = UsageShape("openai images", usage_of_images)
TRANSCRIPTION: Final = UsageShape("openai transcription", usage_of_transcription)
ANTHROPIC: Final = UsageShape("anthropic", usage_of_anthropic, _anthropic_joined)
GEMINI: Final = UsageShape("gemini", usage_of_gemini)
DASHSCOPE: Final = UsageShape("dashscope", usage_of_dashscope)
TENCENT: Final = UsageShape("tencent", usage_of_tencent)
SPARK: Final = UsageShape("spark", usage_of_spark)
OLLAMA: Final = UsageShape("ollama", usage_of_ollama)

SHAPES: Final = {
    "openai": CHAT,
    "azure": CHAT,
    "moonshot": CHAT,
    "deepseek": CHAT,
    "groq": CHAT,
    "zhipu": CHAT,
    "dashscope-compatible": CHAT,
    "hunyuan": CHAT,
    "baichuan": CHAT,
    "spark-http": CHAT,
    "ark": CHAT,
    "360": CHAT,
    "gemini-compatible": CHAT,
    "openai-responses": RESPONSES,
    "openai-images": IMAGES,
    "openai-transcription": TRANSCRIPTION,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
    "dashscope": DASHSCOPE,
    "hunyuan-tc3": TENCENT,
    "spark": SPARK,
    "ollama": OLLAMA,
}
"""By provider and API."""
