"""How much a prompt may cost before it is sent, and which of its text a tokenizer should count.

Bounds are for holds and err upwards; estimates are for bills and do not. Nothing here is sent on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import msgspec

IMAGE_LOW_BOUND: Final = 2_833
"""gpt-4o-mini bills every low-detail image so; no other known model takes more."""
IMAGE_BOUND: Final = 49_000
"""gpt-4o-mini, high detail, eight tiles (2,833 + 5,667 per tile), rounded up."""
IMAGE_LOW_ESTIMATE: Final = 85
IMAGE_ESTIMATE: Final = 765
"""OpenAI's figure for a 1024 by 1024 image in high detail: 85 + 4 tiles of 170."""

AUDIO_BYTES_PER_TOKEN_BOUND: Final = 100
"""Ten tokens a second (OpenAI) at 8 kbit/s, the thinnest speech codec in use."""
AUDIO_BYTES_PER_TOKEN_ESTIMATE: Final = 1_600
"""Ten tokens a second at 128 kbit/s."""
FILE_BOUND_MIN: Final = 49_000
FILE_BOUND_MAX: Final = 500_000
FILE_BYTES_PER_TOKEN_ESTIMATE: Final = 16
VIDEO_BOUND: Final = 196_000
VIDEO_ESTIMATE: Final = 10_000

TEMPLATE_BOUND: Final = 64
"""What chat templates add by themselves: priming, default system lines, dates."""

_NOT_PROMPT: Final = frozenset({"model", "metadata", "logit_bias", "user", "stream_options"})
_WHOLE_FIELDS: Final = ("tools", "functions", "response_format", "prediction")
_MEDIA_MARKS: Final = (b"image_url", b"input_audio", b'"file"', b"video_url", b"\\u00")
"""`\\u00` because an escaped key (`image\\u005furl`) must not slip past the others."""

_DICT: Final = cast("dict[str, Any]", {})


class Media(msgspec.Struct, frozen=True):
    """Pictures, sound and files of a prompt: tokens, and the bytes that are not text."""

    bound_tokens: int = 0
    estimate_tokens: int = 0
    payload_bytes: int = 0


class InputText(msgspec.Struct, frozen=True):
    """What a tokenizer counts of a request when the upstream reported nothing."""

    texts: tuple[str, ...]
    messages: int
    media_tokens: int = 0
    """Estimate for pictures, sound and files, which no tokenizer of ours can see."""


def input_bound(fields: Mapping[str, msgspec.Raw]) -> int:
    """Upper bound of the input tokens of a request's fields.

    A token of a byte-level BPE is at least one byte and JSON never writes text shorter than UTF-8,
    so raw JSON bytes bound the text; base64 payloads are taken out and bounded by kind.
    Raises msgspec.DecodeError where messages with media are no JSON after all.
    """
    total = TEMPLATE_BOUND
    for name, raw in fields.items():
        if name not in _NOT_PROMPT:
            total += len(memoryview(raw))
    messages = bytes(fields["messages"])
    if not any(mark in messages for mark in _MEDIA_MARKS):
        return total
    media = media_of(msgspec.json.decode(messages))
    return total - media.payload_bytes + media.bound_tokens


def media_of(messages: object) -> Media:
    """The media of decoded `messages`; shapes nobody knows count as text, the safe side."""
    bound = estimate = payload = 0
    for part in _parts(messages):
        media = _media_of_part(part)
        bound += media.bound_tokens
        estimate += media.estimate_tokens
        payload += media.payload_bytes
    return Media(bound, estimate, payload)


def input_text(fields: Mapping[str, msgspec.Raw]) -> InputText:
    """The pieces of text in a request's fields, each to be counted by itself."""
    messages = msgspec.json.decode(fields["messages"])
    texts: list[str] = []
    count = 0
    for message in _dicts(messages):
        count += 1
        texts.extend(_texts_of_message(message))
    texts.extend(
        bytes(fields[name]).decode("utf-8", "replace") for name in _WHOLE_FIELDS if name in fields
    )
    return InputText(
        tuple(text for text in texts if text), count, media_of(messages).estimate_tokens
    )


def _texts_of_message(message: Mapping[str, Any]) -> Iterable[str]:
    for name in ("role", "name", "content", "reasoning_content", "refusal"):
        value = message.get(name)
        if isinstance(value, str):
            yield value
    for part in _dicts(message.get("content")):
        text = part.get("text")
        if isinstance(text, str):
            yield text
    calls = [*_dicts(message.get("tool_calls")), {"function": message.get("function_call")}]
    for call in calls:
        function = _dict(call.get("function"))
        for name in ("name", "arguments"):
            value = function.get(name)
            if isinstance(value, str):
                yield value


def _parts(messages: object) -> Iterable[dict[str, Any]]:
    for message in _dicts(messages):
        yield from _dicts(message.get("content"))


def _media_of_part(part: Mapping[str, Any]) -> Media:
    if "image_url" in part:
        return _image(part["image_url"])
    if "input_audio" in part:
        return _audio(_dict(part["input_audio"]).get("data"))
    if "file" in part:
        return _file(_dict(part["file"]).get("file_data"))
    if "video_url" in part:
        payload = _payload_bytes(_url(part["video_url"]))
        return Media(VIDEO_BOUND, VIDEO_ESTIMATE, payload)
    return Media()


def _image(value: object) -> Media:
    payload = _payload_bytes(_url(value))
    if _dict(value).get("detail") == "low":
        return Media(IMAGE_LOW_BOUND, IMAGE_LOW_ESTIMATE, payload)
    return Media(IMAGE_BOUND, IMAGE_ESTIMATE, payload)


def _audio(data: object) -> Media:
    if not isinstance(data, str):
        return Media()
    decoded_bytes = len(data) * 3 // 4
    return Media(
        decoded_bytes // AUDIO_BYTES_PER_TOKEN_BOUND + 1,
        decoded_bytes // AUDIO_BYTES_PER_TOKEN_ESTIMATE + 1,
        len(data),
    )


def _file(data: object) -> Media:
    payload = len(data) if isinstance(data, str) else 0
    decoded_bytes = payload * 3 // 4
    return Media(
        min(max(decoded_bytes, FILE_BOUND_MIN), FILE_BOUND_MAX),
        min(decoded_bytes // FILE_BYTES_PER_TOKEN_ESTIMATE, FILE_BOUND_MAX),
        payload,
    )


def _url(value: object) -> object:
    return value if isinstance(value, str) else _dict(value).get("url")


def _payload_bytes(url: object) -> int:
    """Bytes of a data URL; 0 for an address, which is text like any other."""
    return len(url) if isinstance(url, str) and url.startswith("data:") else 0


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else _DICT


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    if not isinstance(value, list):
        return ()
    items = cast("list[object]", value)
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]
