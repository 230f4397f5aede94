"""The demo model behind the ordinary adapter: only the transport differs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from backend.kit.outbound import AnswerTooLarge, Deadlines, UpstreamCut, UpstreamRequest
from backend.kit.tokenizer import Tokenizer
from schemas.chat import parse_chat_request
from workers.providers.demo import DEMO_BASE_URL, DEMO_MODEL, DemoTransport
from workers.providers.openai import ChannelTarget, build_chat
from workers.providers.openai_answer import ChatStream, Frame, FrameKind, parse_answer

LIMIT_BYTES = 1_000_000


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer()
    yield made
    made.close()


@pytest.fixture
def demo(tokenizer: Tokenizer) -> DemoTransport:
    return DemoTransport(tokenizer, chunk_delay_s=0.0, clock_s=lambda: 1_700_000_000.0)


def call(question: Any = "How are you?", **fields: Any) -> UpstreamRequest:
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": "demo", "messages": messages, **fields}).encode()
    target = ChannelTarget(DEMO_BASE_URL, "", DEMO_MODEL)
    return build_chat(target, parse_chat_request(body), request_id="req-1", output_limit=None)


async def frames_of(demo: DemoTransport, request: UpstreamRequest, choices: int = 1) -> list[Frame]:
    answer = await demo.open(request, Deadlines())
    parser = ChatStream(choices=choices)
    frames = [frame async for chunk in answer.chunks() for frame in parser.feed(chunk)]
    assert parser.done
    return frames


async def test_it_answers_in_the_language_of_the_question_and_says_what_it_is(
    demo: DemoTransport,
) -> None:
    for question, word, quote in (
        ("How are {you}?", "demo model", "How are {you}?"),
        ("你好吗", "演示模型", "你好吗"),
        ([{"type": "text", "text": "parts"}], "demo model", "parts"),
    ):
        answer = await demo.open(call(question), Deadlines())
        read = parse_answer(await answer.read(LIMIT_BYTES))
        assert word in read.text
        assert quote in read.text


async def test_usage_is_what_the_tokenizer_counts(
    demo: DemoTransport, tokenizer: Tokenizer
) -> None:
    answer = await demo.open(call(), Deadlines())
    read = parse_answer(await answer.read(LIMIT_BYTES))
    assert read.usage is not None
    assert read.usage.output == tokenizer.count(DEMO_MODEL, read.text)
    assert read.usage.input == 3 + 1 + tokenizer.count(DEMO_MODEL, "How are you?") + 3
    assert read.finish_reasons == ("stop",)


async def test_a_stream_says_the_same_as_the_whole_answer(demo: DemoTransport) -> None:
    whole = parse_answer(await (await demo.open(call(), Deadlines())).read(LIMIT_BYTES))
    frames = await frames_of(demo, call(stream=True))
    assert "".join(frame.delta.content for frame in frames) == whole.text
    [usage] = [frame.delta.usage for frame in frames if frame.kind is FrameKind.USAGE]
    assert usage == whole.usage


async def test_max_tokens_cuts_the_answer_and_its_bill(demo: DemoTransport) -> None:
    answer = await demo.open(call(max_tokens=5), Deadlines())
    read = parse_answer(await answer.read(LIMIT_BYTES))
    assert read.usage is not None
    assert read.usage.output == 5
    assert read.finish_reasons == ("length",)


async def test_several_choices_are_answered_and_billed(demo: DemoTransport) -> None:
    one = parse_answer(await (await demo.open(call(), Deadlines())).read(LIMIT_BYTES))
    three = parse_answer(await (await demo.open(call(n=3), Deadlines())).read(LIMIT_BYTES))
    assert one.usage is not None
    assert three.usage is not None
    assert three.usage.output == 3 * one.usage.output
    assert three.finish_reasons == ("stop",) * 3
    frames = await frames_of(demo, call(n=3, stream=True), choices=3)
    text = "".join(frame.delta.content for frame in frames)
    assert len(text) == 3 * len(one.text)


async def test_a_cancelled_stream_ends_at_once(tokenizer: Tokenizer) -> None:
    slow = DemoTransport(tokenizer, chunk_delay_s=60.0)
    answer = await slow.open(call(stream=True), Deadlines())
    reading = asyncio.ensure_future(anext(aiter(answer.chunks())))
    await asyncio.sleep(0)
    answer.cancel()
    with pytest.raises(UpstreamCut):
        async with asyncio.timeout(1.0):
            await reading


async def test_a_body_over_the_limit_and_one_that_is_no_chat_are_refused(
    demo: DemoTransport,
) -> None:
    answer = await demo.open(call(), Deadlines())
    with pytest.raises(AnswerTooLarge):
        await answer.read(10)
    bad = await demo.open(UpstreamRequest("POST", "demo:", (), b"{}"), Deadlines())
    assert bad.status == 400
    assert b'"error"' in await bad.read(LIMIT_BYTES)
    await demo.close()
