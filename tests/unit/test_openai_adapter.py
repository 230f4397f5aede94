"""The OpenAI-shaped adapter from bytes to bytes: requests built, answers and usage read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.chat import ChatRequest, Delta, ProblemClass, parse_chat_request
from schemas.openai import ChunkHead, usage_frame, usage_wire
from schemas.usage import Usage
from workers.providers.model_rules import output_limit_name
from workers.providers.openai import ChannelTarget, build_chat, chat_url
from workers.providers.openai_answer import ChatStream, Frame, FrameKind, parse_answer
from workers.providers.reported import usage_of

TARGET = ChannelTarget("https://api.example.com/v1", "sk-secret", "upstream-model")


def request_of(body: str) -> ChatRequest:
    return parse_chat_request(body.encode())


def asking(**fields: object) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return request_of(json.dumps(body))


def built(request: ChatRequest, target: ChannelTarget = TARGET, limit: int | None = None) -> Any:
    made = build_chat(target, request, request_id="req-1", output_limit=limit)
    return json.loads(made.body)


def chunk(delta: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": None}
    return {"id": "c1", "created": 5, "model": "gpt", "choices": [choice], **more}


def sse(*frames: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames)


def read(stream: bytes, *, choices: int = 1) -> list[Frame]:
    parser = ChatStream(choices=choices)
    return parser.feed(stream) + parser.finish()


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


class TestRequest:
    def test_everything_goes_on_unchanged_but_the_model(self) -> None:
        body = (
            '{"model":"m","messages":[ {"role":"user","content":"\\u4f60\\/"} ],'
            '"temperature":1.0,"logit_bias":{"1": -1e2},"mystery":{"deep":[1,{"x":null}]},"n":2}'
        )
        made = build_chat(TARGET, request_of(body), request_id="req-1", output_limit=None)
        assert made.body.decode() == body.replace('"m"', '"upstream-model"', 1)

    def test_the_request_names_us_and_carries_our_id_and_the_key(self) -> None:
        made = build_chat(TARGET, asking(), request_id="req-1", output_limit=None)
        headers = dict(made.headers)
        assert (made.method, made.url) == ("POST", "https://api.example.com/v1/chat/completions")
        assert headers["authorization"] == "Bearer sk-secret"
        assert headers["x-request-id"] == "req-1"
        assert headers["accept-encoding"] == "identity"
        assert "api-key" not in headers

    def test_a_channel_without_a_secret_sends_no_key(self) -> None:
        target = ChannelTarget("http://127.0.0.1:11434/v1/", "", "llama")
        made = build_chat(target, asking(), request_id="r", output_limit=None)
        assert "authorization" not in dict(made.headers)
        assert made.url == "http://127.0.0.1:11434/v1/chat/completions"

    @pytest.mark.parametrize(
        ("options", "sent"),
        [
            (None, {"include_usage": True}),
            ({}, {"include_usage": True}),
            ({"include_usage": False}, {"include_usage": True}),
            (
                {"include_obfuscation": False, "include_usage": True},
                {"include_obfuscation": False, "include_usage": True},
            ),
        ],
    )
    def test_usage_is_always_asked_for_on_a_stream(self, options: Any, sent: Any) -> None:
        assert built(asking(stream=True, stream_options=options))["stream_options"] == sent

    def test_an_unstreamed_call_gets_no_stream_options(self) -> None:
        assert "stream_options" not in built(asking())
        assert "stream_options" not in built(asking(stream=False))

    def test_an_output_limit_lowers_what_the_client_gave_under_its_own_name(self) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            assert built(asking(**{name: 500}), limit=100)[name] == 100
            assert built(asking(**{name: 50}), limit=100)[name] == 50
            assert built(asking(**{name: 500}))[name] == 500

    def test_both_names_are_lowered_where_the_client_gave_both(self) -> None:
        sent = built(asking(max_tokens=500, max_completion_tokens=80), limit=100)
        assert (sent["max_tokens"], sent["max_completion_tokens"]) == (100, 80)

    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("gpt-4o", "max_tokens"),
            ("deepseek-chat", "max_tokens"),
            ("o100-model", "max_tokens"),
            ("o1", "max_completion_tokens"),
            ("o3-mini-2025", "max_completion_tokens"),
            ("o4-mini", "max_completion_tokens"),
            ("gpt-5.6-sol", "max_completion_tokens"),
            ("openai/gpt-6.2-astra", "max_completion_tokens"),
        ],
    )
    def test_a_limit_the_client_left_open_goes_under_the_name_the_model_takes(
        self, model: str, name: str
    ) -> None:
        assert output_limit_name(model) == name
        sent = built(asking(max_tokens=None), ChannelTarget("http://x/v1", "", model), limit=77)
        assert sent[name] == 77

    @pytest.mark.parametrize(
        ("base_url", "url"),
        [
            (
                "https://r.openai.azure.com",
                "https://r.openai.azure.com/openai/deployments/my%20dep/chat/completions?api-version=V",
            ),
            (
                "https://r.openai.azure.com/openai/deployments/d1/",
                "https://r.openai.azure.com/openai/deployments/d1/chat/completions?api-version=V",
            ),
            (
                "https://r.openai.azure.com/v1",
                "https://r.openai.azure.com/openai/deployments/my%20dep/chat/completions?api-version=V",
            ),
            (
                "https://r.openai.azure.com/openai/v1",
                "https://r.openai.azure.com/openai/v1/chat/completions?api-version=V",
            ),
        ],
    )
    def test_azure_has_paths_by_deployment_and_its_own_key_header(
        self, base_url: str, url: str
    ) -> None:
        assert chat_url(base_url, "my dep", "V") == url
        target = ChannelTarget(base_url, "azure-key", "my dep", "V")
        headers = dict(build_chat(target, asking(), request_id="r", output_limit=None).headers)
        assert headers["api-key"] == "azure-key"
        assert "authorization" not in headers


class TestUsage:
    @pytest.mark.parametrize(
        ("wire", "usage"),
        [
            (USAGE, Usage(input=9, output=2)),
            (
                {**USAGE, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3}},
                Usage(input=2, cached_input=4, cache_write=3, output=2),
            ),
            ({**USAGE, "prompt_cache_hit_tokens": 5}, Usage(input=4, cached_input=5, output=2)),
            (
                {**USAGE, "prompt_tokens_details": {"cached_tokens": 99}},
                Usage(input=0, cached_input=9, output=2),
            ),
            ({**USAGE, "prompt_tokens_details": {"cached_tokens": True}}, Usage(input=9, output=2)),
            (
                {**USAGE, "completion_tokens_details": {"reasoning_tokens": 1}},
                Usage(input=9, output=2, reasoning=1),
            ),
            (
                {
                    **USAGE,
                    "total_tokens": 41,
                    "completion_tokens_details": {"reasoning_tokens": 30},
                },
                Usage(input=9, output=32, reasoning=30),
            ),
            ({**USAGE, "prompt_tokens_details": None}, Usage(input=9, output=2)),
        ],
    )
    def test_reported_numbers_become_disjoint_parts(self, wire: Any, usage: Usage) -> None:
        assert usage_of(wire) == usage

    @pytest.mark.parametrize(
        "wire",
        [
            None,
            [],
            "9",
            {},
            {"prompt_tokens": 9},
            {"prompt_tokens": -1, "completion_tokens": 2},
            {"prompt_tokens": 9, "completion_tokens": 10**9 + 1},
            {"prompt_tokens": True, "completion_tokens": 2},
            {"prompt_tokens": "9", "completion_tokens": 2},
            {"prompt_tokens": 9.5, "completion_tokens": 2},
            {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        ],
    )
    def test_numbers_that_cannot_be_true_are_not_reported(self, wire: Any) -> None:
        assert usage_of(wire) is None

    def test_what_we_write_is_read_back_the_same(self) -> None:
        usage = Usage(input=5, cached_input=2, output=8, reasoning=3)
        assert usage_of(usage_wire(usage)) == usage
        [frame] = read(usage_frame(ChunkHead("a", 1, "m"), usage))
        assert (frame.kind, frame.delta.usage) == (FrameKind.USAGE, usage)

    @pytest.mark.parametrize(
        "frame",
        [
            {**chunk(), "x_groq": {"id": "r", "usage": USAGE}},
            {"id": "c", "choices": [{"index": 0, "delta": {}, "usage": USAGE}]},
            chunk(usage=USAGE),
        ],
    )
    def test_usage_is_found_where_providers_hide_it(self, frame: Any) -> None:
        [read_frame] = read(sse(frame))
        assert read_frame.kind is FrameKind.CONTENT
        assert read_frame.delta.usage == Usage(input=9, output=2)


class TestStream:
    def test_a_whole_stream_is_content_then_usage_then_done(self) -> None:
        finish = chunk()
        finish["choices"][0]["finish_reason"] = "stop"
        stream = sse(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Ba"}),
            finish,
            {**chunk(), "choices": [], "usage": USAGE},
        )
        frames = read(stream + b"data: [DONE]\n\n")
        kinds = [frame.kind for frame in frames]
        content = FrameKind.CONTENT
        assert kinds == [content, content, content, FrameKind.USAGE, FrameKind.DONE]
        assert [frame.delta.has_content for frame in frames] == [False, True, False, False, False]
        assert frames[1].delta.text == "Ba"
        assert frames[2].delta.finish_reason == "stop"
        assert b"".join(frame.raw for frame in frames[:-1]) == stream

    def test_reasoning_and_tool_calls_are_first_tokens_too(self) -> None:
        call = {"index": 0, "id": "x", "function": {"name": "look", "arguments": ""}}
        more = {"index": 0, "function": {"arguments": '{"q"'}}
        frames = read(
            sse(
                chunk({"reasoning_content": "hm"}),
                chunk({"reasoning": "hm"}),
                chunk({"reasoning": "hm", "reasoning_content": "hm"}),
                chunk({"tool_calls": [call]}),
                chunk({"tool_calls": [more]}),
                chunk({"function_call": {"name": "f", "arguments": "{}"}}),
                chunk({"refusal": "no"}),
            )
        )
        assert [frame.delta.text for frame in frames] == [
            *("hm", "hm", "hm", "look", '{"q"', "f{}", "no")
        ]
        assert all(frame.delta.has_content for frame in frames)

    def test_empty_choices_without_usage_are_passed_on(self) -> None:
        [frame] = read(sse({"choices": [], "prompt_filter_results": [{}]}))
        assert (frame.kind, frame.delta) == (FrameKind.CONTENT, Delta())

    def test_null_and_null_in_quotes_are_no_finish(self) -> None:
        for reason in (None, "", "null", 5):
            frame = chunk({"content": "x"})
            frame["choices"][0]["finish_reason"] = reason
            assert read(sse(frame))[0].delta.finish_reason is None

    def test_several_choices_are_all_counted(self) -> None:
        both = chunk()
        both["choices"] = [
            {"index": 0, "delta": {"content": "a"}, "finish_reason": None},
            {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"},
        ]
        parser = ChatStream(choices=2)
        [frame] = parser.feed(sse(both))
        assert (frame.delta.text, frame.delta.finish_reason) == ("ab", "stop")
        assert not parser.complete
        head = parser.head(answer_id="ours", created_s=1, model="m")
        cut = json.loads(parser.length_frame(head).removeprefix(b"data: "))
        assert cut["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
        assert (cut["id"], cut["created"], cut["model"]) == ("c1", 5, "gpt")

    def test_an_answer_without_done_is_complete_once_every_choice_finished(self) -> None:
        parser = ChatStream()
        parser.feed(sse(chunk({"content": "a"})))
        assert not parser.complete
        end = chunk()
        end["choices"][0]["finish_reason"] = "stop"
        parser.feed(sse(end))
        assert parser.complete
        assert not parser.done

    def test_comments_and_empty_data_are_comments(self) -> None:
        frames = read(b": keep-alive\n\ndata:\n\nevent: ping\n\n")
        assert {frame.kind for frame in frames} == {FrameKind.COMMENT}

    def test_strange_shapes_of_json_are_passed_on(self) -> None:
        for strange in ([], "x", {"choices": [None]}, {"choices": [{"delta": "text"}]}, {}):
            [frame] = read(sse(strange))
            assert (frame.kind, frame.delta) == (FrameKind.CONTENT, Delta())
        [odd] = read(sse(chunk({"content": [{"type": "text", "text": "parts"}], "tool_calls": 3})))
        assert odd.delta.text == "parts"

    @pytest.mark.parametrize(
        ("frame", "problem"),
        [
            (sse({"error": {"message": "m", "type": "server_error"}}), ProblemClass.UPSTREAM_ERROR),
            (sse({"error": {"code": "rate_limit_exceeded"}}), ProblemClass.RATE_LIMIT),
            (sse({"error": {"code": 429, "message": "slow"}}), ProblemClass.RATE_LIMIT),
            (sse({"error": "text"}), ProblemClass.UPSTREAM_ERROR),
            (sse({"code": 10013, "message": "audit", "sid": "s"}), ProblemClass.CONTENT_FILTER),
            (sse({"x_groq": {"error": "boom"}, "choices": []}), ProblemClass.UPSTREAM_ERROR),
            (b"event: error\ndata: {}\n\n", ProblemClass.UPSTREAM_ERROR),
            (b"data: {half\n\n", ProblemClass.UPSTREAM_ERROR),
            (b'data: {"x":' + b"[" * 5_000 + b"\n\n", ProblemClass.UPSTREAM_ERROR),
        ],
    )
    def test_an_error_inside_a_good_answer_is_recognised(
        self, frame: bytes, problem: ProblemClass
    ) -> None:
        [read_frame] = read(frame)
        assert read_frame.kind is FrameKind.ERROR
        assert read_frame.error is not None
        assert read_frame.error.problem is problem

    def test_code_zero_of_a_good_frame_is_no_error(self) -> None:
        [frame] = read(sse({**chunk({"content": "a"}), "code": 0, "message": "Success"}))
        assert frame.kind is FrameKind.CONTENT

    def test_half_a_frame_at_the_end_is_dropped_and_a_whole_one_kept(self) -> None:
        assert read(b'data: {"choices":[{"del') == []
        assert read(b"data: [DONE]")[0].kind is FrameKind.DONE
        [last] = read(sse(chunk({"content": "z"})).rstrip())
        assert last.delta.text == "z"
        assert last.raw.endswith(b"\n\n")


class TestWholeAnswer:
    def answer(self, **more: Any) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}}
        body = {"id": "a", "choices": [{**choice, "finish_reason": "stop"}], "usage": USAGE}
        return json.dumps({**body, **more}).encode()

    def test_text_usage_and_reasons_are_read(self) -> None:
        answer = parse_answer(self.answer())
        assert answer.error is None
        assert (answer.text, answer.usage) == ("Hello", Usage(input=9, output=2))
        assert answer.finish_reasons == ("stop",)

    def test_an_answer_without_usage_says_so(self) -> None:
        assert parse_answer(self.answer(usage=None)).usage is None

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices":5}', b"{half"])
    def test_bytes_that_are_no_answer_are_an_upstream_error(self, body: bytes) -> None:
        error = parse_answer(body).error
        assert error is not None
        assert (error.problem, error.status) == (ProblemClass.UPSTREAM_ERROR, 502)

    def test_an_error_object_in_a_good_answer_is_an_error(self) -> None:
        error = parse_answer(b'{"error":{"message":"no","code":"invalid_api_key"}}').error
        assert error is not None
        assert error.problem is ProblemClass.AUTH
