"""What of a client's body is read, what is refused, and that the rest stays the bytes it was."""

from __future__ import annotations

import base64
import json

import pytest

from schemas.chat import ChatRequest, parse_chat_request, text_of_input
from schemas.errors import BadRequest
from schemas.prompt import (
    FILE_BOUND_MIN,
    IMAGE_BOUND,
    IMAGE_ESTIMATE,
    IMAGE_LOW_BOUND,
    VIDEO_BOUND,
)

MESSAGES = [{"role": "user", "content": "hi"}]
MESSAGES_JSON = json.dumps(MESSAGES)


def parsed(**fields: object) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def refusal(body: bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_chat_request(body)
    return caught.value.sentence


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b'"text"', "JSON object"),
        (b'{"model":"m","messages":[{"content":"\xff"}]}', "UTF-8"),
        (b'{"model":"m","messages":[{"content":"\\ud800"}]}', "not valid JSON"),
        (b'{"messages":[{"role":"user"}]}', "`model`"),
        (b'{"model":"","messages":[{"role":"user"}]}', "`model` must not be empty"),
        (b'{"model":7,"messages":[{"role":"user"}]}', "`model` must be a string"),
        (b'{"model":"a\\u0000b","messages":[{"role":"user"}]}', "`model`"),
        (b'{"model":"a\\ud800","messages":[{"role":"user"}]}', "not valid JSON"),
        (b'{"model":"' + b"m" * 257 + b'","messages":[{"role":"user"}]}', "`model`"),
        (b'{"model":"m"}', "`messages`"),
        (b'{"model":"m","messages":[]}', "must not be empty"),
        (b'{"model":"m","messages":{"role":"user"}}', "list of objects"),
        (b'{"model":"m","messages":["hi"]}', "list of objects"),
        (b'{"model":"m","messages":null}', "list of objects"),
    ],
)
def test_a_body_that_is_no_chat_request_is_refused_with_a_sentence(body: bytes, word: str) -> None:
    assert word in refusal(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream", '"yes"'),
        ("stream", "1"),
        ("n", "0"),
        ("n", "129"),
        ("n", "true"),
        ("n", "1.5"),
        ("n", '"2"'),
        ("max_tokens", "0"),
        ("max_tokens", "-1"),
        ("max_tokens", '"100"'),
        ("max_tokens", "1000000001"),
        ("max_completion_tokens", "[]"),
        ("stream_options", "true"),
        ("stream_options", '{"include_usage":"yes"}'),
    ],
)
def test_a_known_parameter_of_a_wrong_kind_is_refused_by_name(name: str, value: str) -> None:
    body = f'{{"model":"m","messages":{MESSAGES_JSON},"{name}":{value}}}'
    assert f"`{name}`" in refusal(body.encode())


def test_deep_nesting_is_a_bad_request_and_not_a_crash() -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    assert "nested" in refusal(b'{"model":"m","messages":' + deep + b"}")
    assert "nested" in refusal(b'{"model":"m","messages":[{"role":"user"}],"x":' + deep + b"}")


def test_unknown_parameters_stay_the_bytes_they_were() -> None:
    odd = b'{"a" : 1.50,\n "b":[ 1e3 , null ]}'
    request = parse_chat_request(
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"mystery":' + odd + b"}"
    )
    assert bytes(request.fields["mystery"]) == odd


def test_null_means_the_parameter_was_not_given() -> None:
    request = parsed(stream=None, n=None, max_tokens=None, stream_options=None)
    assert (request.streamed, request.n, request.output_limit) == (False, 1, None)
    assert request.output_limit_name is None
    assert not request.wants_usage


def test_known_parameters_are_read() -> None:
    request = parsed(stream=True, n=3, max_tokens=7, stream_options={"include_usage": True})
    assert (request.model, request.streamed, request.n) == ("m", True, 3)
    assert (request.output_limit, request.output_limit_name) == (7, "max_tokens")
    assert request.wants_usage


def test_the_modern_limit_names_the_pair_and_the_larger_one_bounds_it() -> None:
    request = parsed(max_completion_tokens=5, max_tokens=9)
    assert (request.output_limit, request.output_limit_name) == (9, "max_completion_tokens")


def test_of_two_keys_of_one_name_the_last_is_read_and_the_only_one_kept() -> None:
    request = parse_chat_request(b'{"model":"cheap","messages":[{"role":"user"}],"model":"dear"}')
    assert request.model == "dear"
    assert list(request.fields) == ["model", "messages"]


def test_the_input_bound_is_never_below_the_bytes_of_the_text() -> None:
    for text in ("hello", "你好，世界", "👨‍👩‍👧" * 20, '\n\t"\\' * 30, "\u0001" * 10):
        for ascii_only in (True, False):
            body = json.dumps(
                {"model": "m", "messages": [{"role": "user", "content": text}]},
                ensure_ascii=ascii_only,
            )
            assert parse_chat_request(body.encode()).input_bound >= len(text.encode())


def test_tools_and_formats_count_into_the_bound() -> None:
    plain = parsed().input_bound
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 1_000}}
    assert parsed(tools=[tool]).input_bound > plain + 1_000
    assert parsed(response_format={"schema": "s" * 1_000}).input_bound > plain + 1_000
    assert parsed(metadata={"k": "v" * 1_000}).input_bound == plain


def image(url: str, **more: str) -> list[dict[str, object]]:
    part = {"type": "image_url", "image_url": {"url": url, **more}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]


def test_an_image_is_bounded_by_kind_and_its_base64_is_not_counted() -> None:
    data_url = "data:image/png;base64," + base64.b64encode(b"x" * 300_000).decode()
    high = parsed(messages=image(data_url)).input_bound
    low = parsed(messages=image(data_url, detail="low")).input_bound
    assert IMAGE_BOUND <= high < IMAGE_BOUND + 500
    assert IMAGE_LOW_BOUND <= low < IMAGE_LOW_BOUND + 500


def test_an_image_behind_an_escaped_key_is_bounded_all_the_same() -> None:
    body = json.dumps({"model": "m", "messages": image("https://x.test/a.png")})
    escaped = body.replace("image_url", "image\\u005furl")
    assert "image_url" not in escaped
    assert parse_chat_request(escaped.encode()).input_bound >= IMAGE_BOUND


def test_text_that_looks_like_a_data_url_is_counted_as_text() -> None:
    text = "data:image/png;base64," + "A" * 5_000
    assert parsed(messages=[{"role": "user", "content": text}]).input_bound > 5_000
    parts = [{"type": "text", "text": text}, image("https://x.test/a")[0]["content"][1]]  # type: ignore[index]
    bound = parsed(messages=[{"role": "user", "content": parts}]).input_bound
    assert bound > IMAGE_BOUND + 5_000


def test_sound_files_and_video_have_bounds_of_their_own() -> None:
    data = base64.b64encode(b"x" * 30_000).decode()
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    paper = {"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}
    video = {"type": "video_url", "video_url": {"url": "https://x.test/v.mp4"}}
    bounds = [
        parsed(messages=[{"role": "user", "content": [part]}]).input_bound
        for part in (sound, paper, video)
    ]
    assert 300 <= bounds[0] < 800
    assert FILE_BOUND_MIN <= bounds[1] < FILE_BOUND_MIN + 300
    assert VIDEO_BOUND <= bounds[2] < VIDEO_BOUND + 300


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [None, 1, "x", {"type": "image_url", "image_url": None}]}],
        [{"role": "user", "content": {"image_url": 3}}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "https://x.test"}]}],
        [{"role": 5, "content": 7, "tool_calls": [{"function": None}], "file": {}}],
    ],
)
def test_strange_messages_are_let_through_to_the_provider(messages: list[object]) -> None:
    request = parsed(messages=messages)
    assert request.input_bound > 0
    assert text_of_input(request).messages == 1


def test_the_text_to_count_has_roles_words_calls_and_tools_but_no_pictures() -> None:
    data_url = "data:image/png;base64," + "A" * 4_000
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}
    messages = [
        *image(data_url),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "found"},
    ]
    text = text_of_input(parsed(messages=messages, tools=[{"type": "function"}]))
    assert text.texts[:2] == ("user", "what is it?")
    assert {"look", '{"q":1}', "found", "tool", '[{"type": "function"}]'} <= set(text.texts)
    assert not any("AAAA" in part for part in text.texts)
    assert (text.messages, text.media_tokens) == (3, IMAGE_ESTIMATE)
