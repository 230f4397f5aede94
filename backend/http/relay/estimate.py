"""How many tokens a request's input is likely to be. For rate limits: no money rests on it."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.chat import ChatRequest, text_of_input

BYTES_PER_TOKEN: Final = 3
"""Between English (four) and Chinese (two to three) in today's vocabularies."""
MESSAGE_TOKENS: Final = 4
"""What a chat template adds to each message."""


def rough_estimate(request: ChatRequest) -> int:
    """Costs nothing; far too much for prompts with pictures, sound or files."""
    return max(1, request.input_bound // BYTES_PER_TOKEN)


def closer_estimate(request: ChatRequest) -> int:
    """Reads the messages: their text by its bytes, media as models count them."""
    try:
        text = text_of_input(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return rough_estimate(request)
    text_bytes = sum(len(part.encode("utf-8", "surrogatepass")) for part in text.texts)
    return text_bytes // BYTES_PER_TOKEN + text.messages * MESSAGE_TOKENS + text.media_tokens
