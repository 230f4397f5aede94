"""What the mock upstream answers per model, and how its events carry the time they were sent.

Known to both ends of a measurement; must not open a socket.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

STAMP_DIGITS: Final = 18
STAMP: Final = re.compile(rb"@(\d{18})@")
"""Nanoseconds of the machine's monotonic clock, which all its processes share."""
CREATED_S: Final = 1_700_000_000


class Shape(msgspec.Struct, frozen=True):
    """How a model answers when it streams: so many events, one every `gap_ms` (0: in a burst)."""

    model: str
    events: int
    gap_ms: int


CHAT: Final = Shape("bench-chat", 100, 0)
PACED: Final = Shape("bench-paced", 100, 10)
STEADY: Final = Shape("bench-steady", 100, 50)
SLOW: Final = Shape("bench-slow", 120, 500)
SHAPES: Final = {shape.model: shape for shape in (CHAT, PACED, STEADY, SLOW)}


class RequestSent(msgspec.Struct, frozen=True):
    """One chat completion request: the model, and whether the answer is streamed."""

    model: str
    streamed: bool


_ENCODER: Final = msgspec.json.Encoder()
_PROMPT: Final = (
    "Explain in plain words how an abacus keeps a running total, why each rod stands for a power "
    "of ten, and what a bead above the bar is worth. "
)


def request_body(sent: RequestSent) -> bytes:
    """About 0.9 KB, as a chat client sends it."""
    body: dict[str, object] = {
        "model": sent.model,
        "messages": [
            {"role": "system", "content": _PROMPT},
            {"role": "user", "content": _PROMPT * 3},
        ],
        "max_tokens": 256,
        "temperature": 0.7,
    }
    if sent.streamed:
        body["stream"] = True
    return _ENCODER.encode(body)


def whole_answer(model: str) -> bytes:
    """About 1 KB of a finished chat completion, with usage."""
    return _ENCODER.encode(
        {
            "id": "chatcmpl-bench0123456789abcdef",
            "object": "chat.completion",
            "created": CREATED_S,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _PROMPT * 5, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(150),
            "service_tier": "default",
            "system_fingerprint": "fp_bench",
        }
    )


class Frames(msgspec.Struct, frozen=True):
    """A model's events as bytes: what stands around the time stamp, and how a stream ends."""

    before: bytes
    after: bytes
    finish: bytes
    usage: bytes


DONE_FRAME: Final = b"data: [DONE]\n\n"


def frames_of(model: str) -> Frames:
    """Events of about 205 bytes; the stamp goes between `before` and `after`."""
    mark = "0" * STAMP_DIGITS
    event = _event(model, {"content": f"@{mark}@ bead"}, None)
    before, after = event.split(mark.encode())
    usage: dict[str, object] = {**_chunk(model), "choices": [], "usage": _usage(100)}
    return Frames(before, after, _event(model, {}, "stop"), _frame(usage))


def _event(model: str, delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _frame({**_chunk(model), "choices": [choice]})


def _chunk(model: str) -> dict[str, object]:
    return {
        "id": "chatcmpl-bench0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": CREATED_S,
        "model": model,
    }


def _frame(chunk: dict[str, object]) -> bytes:
    return b"data: " + _ENCODER.encode(chunk) + b"\n\n"


def _usage(output: int) -> dict[str, int]:
    return {"prompt_tokens": 180, "completion_tokens": output, "total_tokens": 180 + output}
