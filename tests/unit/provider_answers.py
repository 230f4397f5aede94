"""The same call as every provider reports it: whole, and as the frames of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from schemas.usage import Usage

Json = dict[str, Any]


class Told(msgspec.Struct, frozen=True):
    """What one answer says, both ways; `total`: the provider's own sum of tokens."""

    shape: str
    whole: Json
    frames: tuple[Json, ...]
    usage: Usage
    """What it must be read as: parts that the provider cannot tell apart are together."""
    total: int


def _prompt(usage: Usage) -> int:
    """Input with all that was cached or written in it."""
    return usage.input_total


def _minutes_only(usage: Usage) -> Usage:
    """Most providers have caches of one length, and make no searches."""
    return Usage(
        usage.input,
        usage.cached_input,
        usage.cache_write + usage.cache_write_1h,
        usage.output,
        usage.reasoning,
    )


def _no_writes(usage: Usage) -> Usage:
    usage = _minutes_only(usage)
    return msgspec.structs.replace(usage, input=usage.input + usage.cache_write, cache_write=0)


def _no_cache(usage: Usage) -> Usage:
    return Usage(input=usage.input_total, output=usage.output, reasoning=usage.reasoning)


def _chat_wire(usage: Usage, **more: Any) -> Json:
    return {
        "prompt_tokens": _prompt(usage),
        "completion_tokens": usage.output,
        "total_tokens": _prompt(usage) + usage.output,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        **more,
    }


def _piece(**more: Any) -> Json:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": "x"}, **more}], "usage": None}


def _chat(shape: str, usage: Usage, wire: Json) -> Told:
    whole = {"id": "c", "choices": [{"index": 0, "message": {"content": "x"}}], "usage": wire}
    last = {"id": "c", "choices": [], "usage": wire}
    total = wire["total_tokens"]
    return Told(shape, whole, (_piece(), _piece(finish_reason="stop"), last), usage, total)


def openai(usage: Usage) -> Told:
    usage = _minutes_only(usage)
    details = {
        "cached_tokens": usage.cached_input,
        "cache_write_tokens": usage.cache_write,
        "audio_tokens": 0,
    }
    return _chat("openai", usage, _chat_wire(usage, prompt_tokens_details=details))


def azure(usage: Usage) -> Told:
    """The first frame has no choices and no usage, but a filter's findings."""
    told = openai(usage)
    first = {"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    return msgspec.structs.replace(told, shape="azure", frames=(first, *told.frames))


def deepseek(usage: Usage) -> Told:
    usage = _no_writes(usage)
    wire = _chat_wire(
        usage,
        prompt_cache_hit_tokens=usage.cached_input,
        prompt_cache_miss_tokens=usage.input,
        prompt_tokens_details={"cached_tokens": usage.cached_input},
    )
    return _chat("deepseek", usage, wire)


def deepseek_without_details(usage: Usage) -> Told:
    usage = _no_writes(usage)
    wire = _chat_wire(
        usage,
        prompt_cache_hit_tokens=usage.cached_input,
        prompt_cache_miss_tokens=usage.input,
    )
    return _chat("deepseek", usage, wire)


def moonshot(usage: Usage) -> Told:
    """Older builds report in the last choice, and what was cached beside the sums."""
    usage = _no_writes(usage)
    wire = _chat_wire(usage, cached_tokens=usage.cached_input)
    told = _chat("moonshot", usage, wire)
    last = _piece(finish_reason="stop", usage=wire)
    return msgspec.structs.replace(told, frames=(_piece(), last))


def groq(usage: Usage) -> Told:
    usage = _no_writes(usage)
    details = {"cached_tokens": usage.cached_input}
    wire = _chat_wire(usage, prompt_tokens_details=details, queue_time=0.1, total_time=0.5)
    told = _chat("groq", usage, wire)
    last = {**_piece(finish_reason="stop"), "x_groq": {"id": "r", "usage": wire}}
    return msgspec.structs.replace(told, frames=(_piece(), last))


def zhipu(usage: Usage) -> Told:
    usage = _no_writes(usage)
    details = {"cached_tokens": usage.cached_input}
    wire = _chat_wire(usage, prompt_tokens_details=details)
    told = _chat("zhipu", usage, wire)
    last = {**_piece(finish_reason="stop"), "usage": wire}
    return msgspec.structs.replace(told, frames=(_piece(), last))


def ark(usage: Usage) -> Told:
    return msgspec.structs.replace(zhipu(usage), shape="ark")


def hunyuan(usage: Usage) -> Told:
    """Sums in every frame."""
    told = zhipu(usage)
    early = {**_piece(), "usage": _chat_wire(Usage(usage.input_total, output=usage.output // 2))}
    return msgspec.structs.replace(told, shape="hunyuan", frames=(early, told.frames[-1]))


def qwen_compatible(usage: Usage) -> Told:
    """An explicit cache's writes have a name of their own, and searches are counted."""
    plain, searches = _minutes_only(usage), usage.searches
    details = {
        "cached_tokens": plain.cached_input,
        "cache_creation_input_tokens": plain.cache_write,
        "cache_type": "ephemeral",
    }
    plugins = {"search": {"count": searches, "strategy": "turbo"}}
    wire = _chat_wire(plain, prompt_tokens_details=details, plugins=plugins)
    return _chat("dashscope-compatible", msgspec.structs.replace(plain, searches=searches), wire)


def baichuan(usage: Usage) -> Told:
    usage = msgspec.structs.replace(_no_cache(usage), reasoning=0)
    wire = _chat_wire(usage)
    del wire["completion_tokens_details"]
    return _chat("baichuan", usage, wire)


def zhinao(usage: Usage) -> Told:
    return msgspec.structs.replace(baichuan(usage), shape="360")


def spark_http(usage: Usage) -> Told:
    told = baichuan(usage)
    good = {"code": 0, "message": "Success", "sid": "s"}
    return msgspec.structs.replace(
        told,
        shape="spark-http",
        whole={**told.whole, **good},
        frames=tuple({**frame, **good} for frame in told.frames),
    )


def gemini_compatible(usage: Usage) -> Told:
    """Thoughts are in the total alone."""
    usage = _no_cache(usage)
    wire = {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output - usage.reasoning,
        "total_tokens": usage.input + usage.output,
    }
    return _chat("gemini-compatible", usage, wire)


def responses(usage: Usage) -> Told:
    usage = _minutes_only(usage)
    wire: Json = {
        "input_tokens": _prompt(usage),
        "input_tokens_details": {
            "cached_tokens": usage.cached_input,
            "cache_write_tokens": usage.cache_write,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": _prompt(usage) + usage.output,
    }
    whole = {"id": "r", "object": "response", "status": "completed", "usage": wire}
    frames = (
        {"type": "response.created", "response": {"id": "r", "usage": None}},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": whole},
    )
    return Told("openai-responses", whole, frames, usage, wire["total_tokens"])


def anthropic(usage: Usage) -> Told:
    """Parts lie beside one another; sums of a stream grow and are never added up."""
    wire: Json = {
        "input_tokens": usage.input,
        "cache_read_input_tokens": usage.cached_input,
        "cache_creation_input_tokens": usage.cache_write + usage.cache_write_1h,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "server_tool_use": {"web_search_requests": usage.searches, "web_fetch_requests": 3},
        "service_tier": "standard",
    }
    begun = {**wire, "output_tokens": min(1, usage.output), "server_tool_use": None}
    del begun["output_tokens_details"]
    grown = {
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "server_tool_use": {"web_search_requests": usage.searches},
    }
    frames = (
        {"type": "message_start", "message": {"id": "m", "usage": begun}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": usage.output // 2}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": grown},
        {"type": "message_stop"},
    )
    whole = {"type": "message", "content": [], "usage": wire}
    return Told("anthropic", whole, frames, usage, usage.input_total + usage.output)


def anthropic_with_all_sums_at_the_end(usage: Usage) -> Told:
    """Input that a server's tools added shows only in the last event."""
    told = anthropic(usage)
    begun = {"input_tokens": usage.input // 2, "output_tokens": 0}
    frames = (
        {"type": "message_start", "message": {"usage": begun}},
        {"type": "message_delta", "delta": {}, "usage": told.whole["usage"]},
    )
    return msgspec.structs.replace(told, frames=frames)


def gemini(usage: Usage) -> Told:
    """Cached content lies inside the prompt; what tools put in and thoughts come on top."""
    usage = _no_writes(usage)
    tools = usage.input // 3
    wire: Json = {
        "promptTokenCount": _prompt(usage) - tools,
        "cachedContentTokenCount": usage.cached_input,
        "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": usage.cached_input}],
        "toolUsePromptTokenCount": tools,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": _prompt(usage) + usage.output,
    }
    begun = {"promptTokenCount": _prompt(usage) - tools, "totalTokenCount": _prompt(usage) - tools}
    frames = (
        {"candidates": [{"index": 0}], "usageMetadata": begun},
        {"candidates": [{"index": 0}]},
        {"candidates": [{"finishReason": "STOP"}], "usageMetadata": wire},
    )
    whole = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": wire}
    return Told("gemini", whole, frames, usage, wire["totalTokenCount"])


def dashscope(usage: Usage) -> Told:
    """Sums in every frame."""
    usage = msgspec.structs.replace(_no_writes(usage), searches=usage.searches)
    wire: Json = {
        "input_tokens": _prompt(usage),
        "output_tokens": usage.output,
        "total_tokens": _prompt(usage) + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "plugins": {"search": {"count": usage.searches}},
    }
    early = {"input_tokens": _prompt(usage), "output_tokens": usage.output // 2}
    output = {"choices": [{"message": {"content": "x"}, "finish_reason": "null"}]}
    frames = ({"output": output, "usage": early}, {"output": output, "usage": wire})
    return Told("dashscope", frames[-1], frames, usage, wire["total_tokens"])


def hunyuan_tc3(usage: Usage) -> Told:
    usage = msgspec.structs.replace(_no_writes(usage), reasoning=0)

    def frame(output: int) -> Json:
        wire = {
            "PromptTokens": _prompt(usage),
            "CompletionTokens": output,
            "TotalTokens": _prompt(usage) + output,
            "PromptTokensDetails": {"CachedTokens": usage.cached_input},
        }
        return {"Id": "i", "Choices": [{"Delta": {"Content": "x"}}], "Usage": wire}

    last = frame(usage.output)
    total = last["Usage"]["TotalTokens"]
    return Told("hunyuan-tc3", {"Response": last}, (frame(usage.output // 2), last), usage, total)


def spark(usage: Usage) -> Told:
    """Never whole: the last frame reports."""
    usage = msgspec.structs.replace(_no_cache(usage), reasoning=0)
    wire = {
        "question_tokens": usage.input // 2,
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }
    first = {"header": {"code": 0, "status": 0}, "payload": {"choices": {"status": 0}}}
    payload = {"choices": {"status": 2}, "usage": {"text": wire}}
    last = {"header": {"code": 0, "status": 2}, "payload": payload}
    return Told("spark", last, (first, last), usage, wire["total_tokens"])


def ollama(usage: Usage) -> Told:
    usage = msgspec.structs.replace(_no_cache(usage), reasoning=0)
    last = {"done": True, "prompt_eval_count": usage.input, "eval_count": usage.output}
    frames = ({"done": False, "message": {"content": "x"}}, last)
    return Told("ollama", last, frames, usage, usage.input + usage.output)


ANSWERS: Final[tuple[Callable[[Usage], Told], ...]] = (
    openai,
    azure,
    deepseek,
    deepseek_without_details,
    moonshot,
    groq,
    zhipu,
    ark,
    hunyuan,
    qwen_compatible,
    baichuan,
    zhinao,
    spark_http,
    gemini_compatible,
    responses,
    anthropic,
    anthropic_with_all_sums_at_the_end,
    gemini,
    dashscope,
    hunyuan_tc3,
    spark,
    ollama,
)
