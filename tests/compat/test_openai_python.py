"""The `openai` package, unmodified, against our relay with a provider behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from schemas.ledger import HoldReleased, HoldSettled
from schemas.prices import PerCall
from tests.conftest import Server
from tests.site import Customer, RunningSite, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL_UPT = 1500
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
PICTURE = "data:image/png;base64,iVBORw0KGgo="


class City(BaseModel):
    name: str
    people: int


class Talk:
    """A model, a customer and both clients, as any program would make them."""

    def __init__(self, site: RunningSite, upstream: FakeUpstream, model: str, anna: Customer):
        self.site, self.upstream, self.model, self.anna = site, upstream, model, anna
        self.client = OpenAI(api_key=anna.key, base_url=f"{site.url}/v1")
        self.later = AsyncOpenAI(api_key=anna.key, base_url=f"{site.url}/v1")
        self.messages: Any = [{"role": "user", "content": "Hello"}]

    async def close(self) -> None:
        self.client.close()
        await self.later.close()

    async def charged_once(self, failures: int = 0) -> None:
        """One settlement of what was reported; the failed tries before it were released."""
        ends = await self.site.ended(self.anna, failures + 1)
        assert [type(end) for end in ends] == [HoldReleased] * failures + [HoldSettled]
        assert (await self.site.account(self.anna)).charged_upt == CALL_UPT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(server, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def talk(site: RunningSite) -> AsyncIterator[Talk]:
    async with FakeUpstream() as upstream:
        model = site.model()
        await site.serves(upstream.url, model)
        made = Talk(site, upstream, model, await site.customer("1000"))
        yield made
        await made.close()


async def test_a_chat_and_the_headers_of_its_answer(talk: Talk) -> None:
    def ask() -> Any:
        return talk.client.chat.completions.with_raw_response.create(
            model=talk.model, messages=talk.messages
        )

    raw = await asyncio.to_thread(ask)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello!"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert raw.headers["x-suanpan-points"] == "0.0015"
    assert answer._request_id == talk.upstream.seen[0].request_id
    await talk.charged_once()


@pytest.mark.parametrize("wants_usage", [True, False])
async def test_a_stream(talk: Talk, wants_usage: bool) -> None:
    def read() -> tuple[str, list[int], list[str]]:
        more: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
        chunks = list(
            talk.client.chat.completions.create(
                model=talk.model, messages=talk.messages, stream=True, **more
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        totals = [chunk.usage.total_tokens for chunk in chunks if chunk.usage]
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        return text, totals, [reason for reason in reasons if reason]

    text, totals, reasons = await asyncio.to_thread(read)
    assert (text, reasons) == ("Hello!", ["stop"])
    assert totals == ([12] if wants_usage else [])
    await talk.charged_once()


async def test_a_tool_call_whole(talk: Talk) -> None:
    talk.upstream.play(Script(('{"city": ', '"Xi\'an"}'), tool_name="weather"))
    answer: Any = await talk.later.chat.completions.create(
        model=talk.model, messages=talk.messages, tools=TOOLS, tool_choice="auto"
    )
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"city": "Xi'an"}
    assert talk.upstream.seen[0].json["tools"] == TOOLS
    assert talk.upstream.seen[0].json["tool_choice"] == "auto"
    await talk.charged_once()


async def test_a_tool_call_streamed(talk: Talk) -> None:
    talk.upstream.play(Script(('{"city": ', '"Xi\'an"}'), tool_name="weather"))
    async with talk.later.chat.completions.stream(
        model=talk.model, messages=talk.messages, tools=TOOLS
    ) as stream:
        final: Any = await stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert (call.function.name, call.id) == ("weather", "call_1")
    assert json.loads(call.function.arguments) == {"city": "Xi'an"}
    await talk.charged_once()


async def test_a_picture(talk: Talk) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    answer = await talk.later.chat.completions.create(model=talk.model, messages=messages)
    assert answer.choices[0].message.content == "Hello!"
    assert talk.upstream.seen[0].json["messages"] == messages
    await talk.charged_once()


async def test_structured_output(talk: Talk) -> None:
    talk.upstream.play(Script(('{"name": "Xi\'an", ', '"people": 13}')))
    answer = await talk.later.chat.completions.parse(
        model=talk.model, messages=talk.messages, response_format=City
    )
    assert answer.choices[0].message.parsed == City(name="Xi'an", people=13)
    asked = talk.upstream.seen[0].json["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["strict"] is True
    await talk.charged_once()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_busy_provider_then_success_is_retried_by_the_sdk_and_charged_once(
    talk: Talk, status: int, streamed: bool
) -> None:
    talk.upstream.play(Script(fail_first=1, fail_status=status, retry_after="1"))
    answer: Any = await talk.later.chat.completions.create(
        model=talk.model, messages=talk.messages, stream=streamed
    )
    if streamed:
        texts = [c.choices[0].delta.content or "" async for c in answer if c.choices]
        assert "".join(texts) == "Hello!"
    else:
        assert answer.choices[0].message.content == "Hello!"
    assert len(talk.upstream.seen) == 2
    await talk.charged_once(failures=1)


async def test_refusals_become_the_sdks_own_errors(talk: Talk) -> None:
    create = talk.later.with_options(max_retries=0).chat.completions.create
    with pytest.raises(openai.NotFoundError) as not_found:
        await create(model="nobody-knows-it", messages=talk.messages)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await create(model=talk.model, messages=[])
    talk.upstream.play(Script(status=400, error={"message": "No such parameter."}))
    with pytest.raises(openai.BadRequestError, match="No such parameter"):
        await create(model=talk.model, messages=talk.messages)
    talk.upstream.play(Script(status=429), Script(status=500))
    with pytest.raises(openai.RateLimitError):
        await create(model=talk.model, messages=talk.messages)
    with pytest.raises(openai.InternalServerError):
        await create(model=talk.model, messages=talk.messages)
    stranger = talk.later.with_options(api_key="sk-nobody", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as unknown:
        await stranger.chat.completions.create(model=talk.model, messages=talk.messages)
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        await stranger.models.list()
    assert (await talk.site.account(talk.anna)).charged_upt == 0


async def test_too_few_points_are_told_by_code_and_not_retried(talk: Talk) -> None:
    dear = talk.site.model()
    await talk.site.serves(talk.upstream.url, dear, price=PerCall(10**13))
    with pytest.raises(openai.APIStatusError) as refused:
        await talk.later.chat.completions.create(model=dear, messages=talk.messages)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")
    assert "9000" in refused.value.message
    assert talk.upstream.seen == []


async def test_an_answer_that_breaks_off_raises_in_the_stream(talk: Talk) -> None:
    talk.upstream.play(Script(cut_after=2))
    stream = await talk.later.chat.completions.create(
        model=talk.model, messages=talk.messages, stream=True
    )
    chunks = aiter(stream)
    for text in ("Hel", "lo"):
        assert (await anext(chunks)).choices[0].delta.content == text
    with pytest.raises(openai.APIError, match="failed to answer"):
        await anext(chunks)


async def test_the_models_of_a_key(talk: Talk) -> None:
    assert talk.model in {model.id async for model in talk.later.models.list()}
    assert (await talk.later.models.retrieve(talk.model)).id == talk.model
