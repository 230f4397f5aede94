"""Limits on a running relay: headers, refusals, several processes, and Valkey coming and going."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from backend.catalog.limits import LimitBook
from schemas.catalog import Limits
from schemas.ledger import HoldReleased, HoldSettled
from tests.conftest import Database, Server
from tests.integration.identity_site import until
from tests.site import (
    Customer,
    Reply,
    RunningSite,
    balances,
    bearer,
    chat,
    outcomes,
    role_process,
    running_site,
    shared_site,
)
from tests.upstream import FakeUpstream, Script
from tests.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATES = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
CHAT_PATH = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, shared_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    folder = tmp_path_factory.mktemp("site")
    async with shared_site(
        server, folder, redis_url=shared_valkey.url, http_trusted_proxies="127.0.0.1"
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def limit(site: RunningSite, scope: str, identity: object, **limits: int) -> int:
    book = LimitBook(site.base.writer, site.base.pool)
    version = await book.set_limit(scope, str(identity), Limits(**limits))
    await site.refresh()
    return version


async def served(site: RunningSite, upstream: FakeUpstream, **key: object) -> tuple[Customer, str]:
    """A customer and a model of their own; not within seconds of a minute's end."""
    second_s = time.time() % 60
    if second_s > 50:
        await asyncio.sleep(60.1 - second_s)
    model = site.model()
    await site.serves(upstream.url, model)
    return await site.customer("1000", **key), model


def rates(reply: Reply) -> tuple[int, ...]:
    return tuple(int(reply.headers[name]) for name in RATES if name in reply.headers)


async def test_without_a_limit_an_answer_has_no_rate_headers(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    assert rates(await site.ask(anna.key, chat(model))) == ()


async def test_whole_and_streamed_answers_say_what_is_left_and_the_next_is_refused(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "key", anna.key_id, requests_per_minute=2)
    whole = await site.ask(anna.key, chat(model))
    assert rates(whole)[:2] == (2, 1)
    assert 1 <= rates(whole)[2] <= 60
    streamed = await site.ask(anna.key, chat(model, stream=True))
    assert (streamed.status, rates(streamed)[:2]) == (200, (2, 0))
    refused = await site.ask(anna.key, chat(model))
    assert (refused.status, rates(refused)[:2]) == (429, (2, 0))
    assert refused.headers["retry-after"] == refused.headers["ratelimit-reset"]
    assert refused.error == {
        "message": "Limit of 2 requests per minute for this key reached; "
        f"try again in {refused.headers['retry-after']} s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    ends = await site.ended(anna, 2)
    assert len(ends) == len(upstream.seen) == 2, "a refused call is neither held nor sent"


async def test_the_openai_client_meets_a_rate_limit_as_it_knows_it(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "person", anna.person, requests_per_day=1)
    messages: Any = [{"role": "user", "content": "Hello"}]
    async with openai.AsyncOpenAI(
        api_key=anna.key, base_url=f"{site.url}/v1", max_retries=0
    ) as client:
        first = await client.chat.completions.with_raw_response.create(
            model=model, messages=messages
        )
        assert first.headers["RateLimit-Limit"] == "1"
        assert first.headers["RateLimit-Remaining"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=model, messages=messages)
    assert caught.value.code == "rate_limit_exceeded"
    assert "Limit of 1 requests per day for this account reached" in caught.value.message
    assert int(caught.value.response.headers["Retry-After"]) > 0


async def test_tokens_count_as_the_provider_reported_them(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "model", model, tokens_per_day=500)
    for used, streamed in ((12, False), (24, True)):
        await site.ask(anna.key, chat(model, stream=streamed))
        await site.idle()
        counter = site.relay.rates.counters.use(
            f"model:{model}:tokens:day", None, site.base.clock.now_us()
        )
        assert counter.own == used


async def test_a_call_that_failed_before_its_first_byte_used_no_tokens(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "key", anna.key_id, tokens_per_day=500, requests_per_day=50)
    upstream.by_model[model] = Script(status=400)
    poor = await site.customer(None)
    await limit(site, "key", poor.key_id, tokens_per_day=500, requests_per_day=50)
    assert (await site.ask(anna.key, chat(model))).status == 400
    assert (await site.ask(anna.key, chat(model, stream=True))).status == 400
    assert (await site.ask(poor.key, chat(model))).status == 402
    now_us = site.base.clock.now_us()
    for customer, requests in ((anna, 2), (poor, 1)):
        use, name = site.relay.rates.counters.use, f"key:{customer.key_id}"
        assert use(f"{name}:tokens:day", None, now_us).own == 0
        assert use(f"{name}:requests:day", None, now_us).own == requests


async def test_a_model_has_only_so_many_calls_under_way(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "model", model, concurrency=1)
    upstream.by_model[model] = Script(gated=True)
    async with site.stream(anna.key, chat(model)) as streaming:
        seen = await upstream.arrived()
        refused = await site.ask(anna.key, chat(model))
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert f"Limit of 1 requests at once for the model `{model}`" in refused.error["message"]
        seen.allow(100)
        await streaming.rest()
    await site.idle()
    upstream.by_model[model] = Script()
    assert (await site.ask(anna.key, chat(model))).status == 200


async def test_a_client_that_leaves_leaves_nothing_open(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "model", model, concurrency=1)
    upstream.by_model[model] = Script(gated=True)
    async with site.stream(anna.key, chat(model)):
        await upstream.arrived()
    await site.idle()
    upstream.by_model[model] = Script()
    assert (await site.ask(anna.key, chat(model))).status == 200


async def test_an_accounts_group_is_limited_from_its_second_call(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "group", "normal", requests_per_minute=1)
    try:
        statuses = [(await site.ask(anna.key, chat(model))).status for _ in range(3)]
        assert statuses == [200, 200, 429]
    finally:
        await limit(site, "group", "normal")


async def test_a_key_for_some_addresses_is_refused_from_others(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    """This machine is a trusted proxy here."""
    anna, model = await served(site, upstream, addresses=("192.0.2.0/24",))
    inside = await site.ask(anna.key, chat(model), x_forwarded_for="203.0.113.1, 192.0.2.9")
    assert inside.status == 200
    for outside in ({}, {"x_forwarded_for": "192.0.2.9, 203.0.113.1"}, {"forwarded": "for=_x"}):
        refused = await site.ask(anna.key, chat(model), **outside)
        assert (refused.status, refused.error["code"]) == (403, "address_not_allowed")
    listed = await site.send("GET", "/v1/models", bearer(anna.key))
    assert listed.status == 403
    behind = {**bearer(anna.key), "forwarded": "for=192.0.2.9"}
    assert (await site.send("GET", "/v1/models", behind)).status == 200


async def test_without_a_trusted_proxy_no_header_opens_a_bound_key(
    database: Database, upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as alone:
        anna, model = await served(alone, upstream, addresses=("192.0.2.0/24",))
        refused = await alone.ask(anna.key, chat(model), x_forwarded_for="192.0.2.9")
        assert (refused.status, refused.error["code"]) == (403, "address_not_allowed")
        here = await alone.customer("1000", addresses=("127.0.0.0/8",))
        assert (await alone.ask(here.key, chat(model))).status == 200


async def test_two_processes_share_a_limit(
    site: RunningSite, upstream: FakeUpstream, shared_valkey: ValkeyServer, tmp_path: Path
) -> None:
    anna, model = await served(site, upstream)
    await limit(site, "key", anna.key_id, requests_per_day=60)
    body = json.dumps(chat(model)).encode()
    async with (
        role_process("api", site.database, tmp_path / "a", REDIS_URL=shared_valkey.url) as one,
        role_process("api", site.database, tmp_path / "b", REDIS_URL=shared_valkey.url) as two,
        aiohttp.ClientSession() as session,
    ):

        async def calls(url: str) -> list[int]:
            statuses: list[int] = []
            while statuses.count(429) < 5:
                async with session.post(
                    url + CHAT_PATH, headers=bearer(anna.key), data=body
                ) as response:
                    await response.read()
                    statuses.append(response.status)
            return statuses

        found = await asyncio.gather(*(calls(one.url) for _ in range(4)), calls(two.url))
    admitted = sum(statuses.count(200) for statuses in found)
    assert {status for statuses in found for status in statuses} == {200, 429}
    # Said at once: each tenth of the limit; beside it, what was under way meanwhile.
    assert 60 <= admitted <= 60 + 6 + 10


async def test_without_valkey_the_relay_goes_on_and_a_wipe_changes_nothing_about_money(
    database: Database, upstream: FakeUpstream, tmp_path: Path
) -> None:
    with valkey_server() as server:
        async with running_site(database, tmp_path, redis_url=server.url) as alone:
            anna, model = await served(alone, upstream)
            await limit(alone, "key", anna.key_id, requests_per_day=8)
            assert [(await alone.ask(anna.key, chat(model))).status for _ in range(2)] == [200] * 2
            server.wipe()
            assert [(await alone.ask(anna.key, chat(model))).status for _ in range(2)] == [200] * 2
            server.stop()
            assert [(await alone.ask(anna.key, chat(model))).status for _ in range(4)] == [200] * 4
            assert (await alone.ask(anna.key, chat(model))).status == 429
            await until(lambda: alone.relay.rates.alone)
            assert "Valkey does not answer" in alone.relay.rates.warnings()[0]
            server.start()
            assert (await alone.ask(anna.key, chat(model))).status == 429
            events = await alone.events(anna)
            charged = [end.amount_upt for end in outcomes(events) if isinstance(end, HoldSettled)]
            assert len(charged) == 8
            assert len(set(charged)) == 1, "every call cost the same"
            assert not any(isinstance(event, HoldReleased) for event in events)
            assert balances(events)[-1][1] == 0


async def test_a_limit_is_set_once_and_read_back(site: RunningSite) -> None:
    book = LimitBook(site.base.writer, site.base.pool)
    wanted = Limits(requests_per_minute=60, tokens_per_day=100_000)
    assert await book.set_limit("group", "pro-a", wanted) == 1
    assert await book.set_limit("group", "pro-a", wanted) == 1
    found = [entry for entry in await book.list_limits() if entry.id == "pro-a"]
    assert [(entry.scope, entry.limits, entry.version) for entry in found] == [("group", wanted, 1)]
    assert await book.set_limit("group", "pro-a", Limits()) == 2
    assert not [entry for entry in await book.list_limits() if entry.id == "pro-a"]
