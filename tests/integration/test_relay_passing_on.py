"""What a client sends goes on as the bytes it was, and so does what the provider sends back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from schemas.ledger import HoldSettled
from schemas.prices import PerToken, cost_of
from tests.conftest import Server
from tests.site import UPSTREAM_SECRET, RunningSite, chat, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD = b'"x_unknown": {"b" : 1.0, "a": [1e400, "\\u00e9\xc3\xa9", 10000000000000000000000, -0.0]}'
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
PICTURE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(server, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def direct(upstream: FakeUpstream, body: dict[str, Any]) -> bytes:
    """The same call made straight to the provider."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.url}/chat/completions", json=body) as response,
    ):
        return await response.read()


async def test_unknown_parameters_reach_the_provider_byte_for_byte(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    for streamed in (b"true", b"false"):
        body = (
            b'{"model": "%s", "stream": %s, "messages": [ {"role":"user","content":"\\u4f60 "} ], '
            % (model.encode(), streamed)
            + ODD
            + b"}"
        )
        assert (await site.ask(anna.key, body)).status == 200
        sent = upstream.seen[-1].body
        assert ODD.partition(b": ")[2] in sent
        assert b'[ {"role":"user","content":"\\u4f60 "} ]' in sent


async def test_known_parameters_reach_the_provider_as_they_were_given(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer("500")
    given = chat(
        model,
        messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": PICTURE}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "look"}},
        parallel_tool_calls=False,
        response_format=SCHEMA,
        n=2,
        temperature=0.25,
        max_completion_tokens=77,
        seed=7,
        logit_bias={"50256": -100},
        stop=["\n"],
    )
    reply = await site.ask(anna.key, given)
    assert reply.status == 200
    assert len(reply.json["choices"]) == 2
    assert upstream.seen[-1].json == given


async def test_usage_is_always_asked_for_and_other_stream_options_are_kept(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    for options in ({}, {"include_usage": False}, {"include_usage": True}, {"x_other": 1}, None):
        given = chat(model, stream=True, **({} if options == {} else {"stream_options": options}))
        assert (await site.ask(anna.key, given)).status == 200
        assert upstream.seen[-1].json["stream_options"] == {
            **(options or {}),
            "include_usage": True,
        }
    await site.ask(anna.key, chat(model))
    assert "stream_options" not in upstream.seen[-1].json


@pytest.mark.parametrize("last_chunk", [False, True])
async def test_frames_go_on_unchanged_and_the_extra_usage_frame_only_to_who_asked(
    site: RunningSite, last_chunk: bool
) -> None:
    script = Script(reasoning=("Hm.",), texts=("Hé", "llo"), usage_in_last_chunk=last_chunk)
    for wants in (True, False):
        model = site.model()
        async with FakeUpstream(script) as compared, FakeUpstream(script) as upstream:
            await site.serves(upstream.url, model)
            anna = await site.customer()
            asking = chat(model, stream=True, stream_options={"include_usage": True})
            expected = await direct(compared, asking)
            given = asking if wants else chat(model, stream=True)
            body = (await site.ask(anna.key, given)).body
        *frames, done, nothing = expected.split(b"\n\n")
        assert (done, nothing) == (b"data: [DONE]", b"")
        if not wants and not last_chunk:
            assert b'"choices": []' in frames.pop()
        assert body.split(b"\n\n") == [*frames, b": suanpan-points 0.0015", done, b""]


async def test_a_whole_answer_goes_on_unchanged(site: RunningSite) -> None:
    model = site.model()
    async with FakeUpstream() as compared, FakeUpstream() as upstream:
        await site.serves(upstream.url, model)
        anna = await site.customer()
        reply = await site.ask(anna.key, chat(model))
        assert reply.body == await direct(compared, chat(model))


async def test_comments_of_the_provider_stay_with_us(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    upstream.play(Script(comment_first=True))
    body = (await site.ask((await site.customer()).key, chat(model, stream=True))).body
    assert body.startswith(b'data: {"id"')


async def test_the_provider_gets_our_secret_and_request_id_and_nothing_of_the_client(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer()
    for streamed in (True, False):
        reply = await site.ask(
            anna.key,
            chat(model, stream=streamed),
            x_request_id="the-clients-own",
            cookie="session=1",
            x_forwarded_for="203.0.113.7",
            openai_organization="org-of-the-client",
        )
        seen = upstream.seen[-1]
        assert seen.headers["authorization"] == f"Bearer {UPSTREAM_SECRET}"
        assert seen.request_id == reply.headers["x-request-id"] != "the-clients-own"
        said = json.dumps(seen.headers) + seen.body.decode()
        for private in (anna.key, "session=1", "203.0.113.7", "org-of-the-client"):
            assert private not in said
        assert reply.headers["content-type"].startswith(
            "text/event-stream" if streamed else "application/json"
        )
        assert ("x-suanpan-points" in reply.headers) is not streamed


async def test_a_mapped_model_is_sent_under_its_other_name_and_charged_as_the_one_asked_for(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    asked, other = site.model(), site.model()
    dear = PerToken(input_npt=7_000_000, output_npt=11_000_000)
    await site.serves(upstream.url, other)
    await site.serves(upstream.url, asked, price=dear, mapping=((asked, other),))
    anna = await site.customer("100")
    assert (await site.ask(anna.key, chat(asked))).status == 200
    assert upstream.seen[-1].json["model"] == other
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert end.amount_upt == cost_of(dear, end.usage)
    assert (end.price.model, end.served.upstream_model) == (asked, other)
