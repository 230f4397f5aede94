"""OpenAI's wire format: the parts of chunks and answers that are read, and what we write ourselves.

Decoders are lenient: a field of an unexpected type never spoils the fields beside it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from schemas.usage import Usage

DONE: Final = b"[DONE]"
DONE_FRAME: Final = b"data: [DONE]\n\n"


class WireMessage(msgspec.Struct, frozen=True, gc=False):
    """A `delta` or a `message`. Every field may be anything: providers differ."""

    content: Any = None
    reasoning_content: Any = None
    """DeepSeek, Zhipu, DashScope, Ark, Spark X1, Moonshot."""
    reasoning: Any = None
    """Ollama, Groq with `reasoning_format=parsed`."""
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class WireChoice(msgspec.Struct, frozen=True, gc=False):
    """One entry of `choices`."""

    index: Any = 0
    delta: WireMessage | None = None
    message: WireMessage | None = None
    finish_reason: Any = None
    usage: Any = None
    """Older Moonshot builds report here."""


class WireAnswer(msgspec.Struct, frozen=True, gc=False):
    """A chunk of a stream or a whole answer."""

    id: Any = None
    created: Any = None
    model: Any = None
    choices: list[WireChoice] | None = None
    usage: Any = None
    error: Any = None
    code: Any = None
    """Spark and DashScope put errors at the top: `code` with `message`, without `choices`."""
    message: Any = None
    x_groq: Any = None


class ChunkHead(msgspec.Struct, frozen=True, gc=False):
    """What all chunks of one answer share; needed to write one of our own among them."""

    id: str
    created_s: int
    model: str


_ANSWER: Final = msgspec.json.Decoder(WireAnswer)
_ENCODER: Final = msgspec.json.Encoder()


def decode_answer(data: bytes) -> WireAnswer:
    """Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError where it is no answer."""
    return _ANSWER.decode(data)


def chunk_frame(head: ChunkHead, choices: list[dict[str, Any]], usage: Usage | None) -> bytes:
    """One `chat.completion.chunk` as a frame; without `usage` the key is left out."""
    chunk: dict[str, Any] = {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created_s,
        "model": head.model,
        "choices": choices,
    }
    if usage is not None:
        chunk["usage"] = usage_wire(usage)
    return b"data: " + _ENCODER.encode(chunk) + b"\n\n"


def text_frame(head: ChunkHead, index: int, text: str, *, role: bool = False) -> bytes:
    """A chunk with a piece of content; the first of a choice also names the role."""
    delta = {"role": "assistant", "content": text} if role else {"content": text}
    return chunk_frame(head, [{"index": index, "delta": delta, "finish_reason": None}], None)


def finish_frame(head: ChunkHead, indexes: tuple[int, ...], reason: str) -> bytes:
    """A chunk that ends choices: `finish_reason` is `stop`, `length`, …"""
    nothing: dict[str, Any] = {}
    choices: list[dict[str, Any]] = [
        {"index": index, "delta": nothing, "finish_reason": reason} for index in indexes
    ]
    return chunk_frame(head, choices, None)


def usage_frame(head: ChunkHead, usage: Usage) -> bytes:
    """The extra chunk before `[DONE]` that a client gets with `include_usage`."""
    return chunk_frame(head, [], usage)


def error_frame(body: bytes) -> bytes:
    """An error inside a stream, from the body `error_body` makes."""
    return b"data: " + body + b"\n\n"


def error_body(*, sentence: str, kind: str, code: str, param: str | None = None) -> bytes:
    """`{"error": …}` as OpenAI's SDKs read it."""
    error = {"message": sentence, "type": kind, "param": param, "code": code}
    return _ENCODER.encode({"error": error})


def usage_wire(usage: Usage) -> dict[str, Any]:
    """A usage record as OpenAI writes it: the prompt's count includes cached tokens."""
    prompt = usage.input_total
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
