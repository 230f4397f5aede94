"""Whatever goes wrong after a hold, it comes back exactly once (docs/peers.md).

What fails is the provider or a process, never a part of ours put out of order by the test.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest
import pytest_asyncio

from schemas.identity import Reset
from schemas.ids import RequestId
from schemas.ledger import HoldReleased, HoldSettled, PointsHeld
from schemas.prices import PerCall, cost_of
from schemas.usage import Basis, Usage
from tests.conftest import Database, Server
from tests.given import POINT
from tests.integration.audited_site import audited, readable
from tests.integration.peers_ground import provider_saying
from tests.site import (
    PRICE,
    Customer,
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

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_A_CALL = PerCall(1_000_000_000)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ODD_ANSWERS = {
    "nothing at all": b"",
    "no HTTP": b"\x16\x03\x01 what is this\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "an empty body": HEAD + b"content-length: 0\r\n\r\n",
    "no body by its status": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a page for people": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>Welcome</html>",
    "JSON of another shape": HEAD + b'content-length: 14\r\n\r\n{"hello": [1]}',
    "bytes that are no text": HEAD + b"\r\n\xff\xfe\x00\x80",
    "less than it announced": HEAD + b'content-length: 9000\r\n\r\n{"id": "x"',
    "a body that is packed wrongly": HEAD + b"content-encoding: gzip\r\n\r\nnot gzip",
    "chunks that are none": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "another place": b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n",
    "a status of its own": b"HTTP/1.1 799 Odd\r\ncontent-length: 2\r\n\r\n{}",
    "an error without words": b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
    "an error as text": b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy",
}
"""Before a single token: none of them may cost anything."""
ODD_SCRIPTS = (
    Script(cut_before_head=True),
    Script(cut_after=0),
    Script(cut_after=1),
    Script(half_frame_after=1),
    Script(end_early_after=1),
    Script(error_frame_after=0),
    Script(error_frame_after=1),
    Script(first_byte_delay_s=3.0),
    Script(texts=(), usage=None),
    Script(usage={"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10}),
    Script(usage={"prompt_tokens": 10**30, "completion_tokens": 10**30}),
    Script(usage={"prompt_tokens": "many", "completion_tokens": None}),
    Script(usage={}),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    folder = tmp_path_factory.mktemp("site")
    short = {"relay_first_byte_timeout_s": 1.0, "relay_idle_timeout_s": 1.0}
    async with shared_site(server, folder, relay_cooldown_s=0.05, **short) as running:
        yield running
        report = await audited(running.database.app_url)
        assert report.ok, report.first


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def assert_ended_once(site: RunningSite, customer: Customer, count: int) -> int:
    """Every hold has one outcome and is gone; what was charged in all."""
    await site.ended(customer, count)
    await site.idle()
    events = await site.events(customer)
    held = [event.request_id for event in events if isinstance(event, PointsHeld)]
    ends = outcomes(events)
    assert sorted(held) == sorted(end.request_id for end in ends)
    assert len(set(held)) == len(held) == count
    state = await site.account(customer)
    charged_upt = sum(end.amount_upt for end in ends if isinstance(end, HoldSettled))
    assert (state.held_upt, state.holds, state.charged_upt) == (0, {}, charged_upt)
    assert min(min(numbers) for numbers in balances(events)) >= 0
    return charged_upt


async def test_a_provider_that_answers_nonsense_costs_nothing_and_the_hold_comes_back_once(
    site: RunningSite,
) -> None:
    async def asked(what: str, answer: bytes) -> None:
        model = site.model()
        async with provider_saying(answer) as url:
            await site.serves(url, model)
            anna = await site.customer()
            for streamed in (True, False):
                reply = await site.ask(anna.key, chat(model, stream=streamed))
                assert reply.status >= 400, (what, reply)
            assert await assert_ended_once(site, anna, 2) == 0, what

    await asyncio.gather(*(asked(what, answer) for what, answer in ODD_ANSWERS.items()))


async def test_a_provider_that_cannot_be_reached_costs_nothing_and_the_hold_comes_back_once(
    site: RunningSite,
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody_listens = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        for url in (nobody_listens, "http://name.invalid/v1", "https://127.0.0.1:1/v1"):
            model = site.model()
            await site.serves(url, model)
            anna = await site.customer()
            for streamed in (True, False):
                reply = await site.ask(anna.key, chat(model, stream=streamed))
                assert reply.status >= 500
            assert await assert_ended_once(site, anna, 2) == 0


async def test_every_way_in_which_an_answer_can_go_wrong_ends_its_hold_once(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    async def asked(script: Script, streamed: bool) -> None:
        model = site.model()
        upstream.by_model[model] = script
        await site.serves(upstream.url, model)
        anna = await site.customer()
        await site.ask(anna.key, chat(model, stream=streamed))
        await assert_ended_once(site, anna, 1)

    ways = [asked(script, streamed) for script in ODD_SCRIPTS for streamed in (True, False)]
    await asyncio.gather(*ways)


async def test_after_a_storm_of_hang_ups_nothing_is_held_and_every_point_can_be_spent(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    model, chance = site.model(), Random(7)
    await site.serves(upstream.url, model, price=ONE_A_CALL)
    upstream.by_model[model] = Script(("word ",) * 6, chunk_delay_s=0.02, first_byte_delay_s=0.05)
    anna = await site.customer("60")

    async def leaves(after_s: float, streamed: bool) -> None:
        call = asyncio.create_task(site.ask(anna.key, chat(model, stream=streamed)))
        await asyncio.wait([call], timeout=after_s)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    await asyncio.gather(
        *(leaves(chance.uniform(0, 0.3), chance.random() < 0.7) for _ in range(50))
    )
    await site.noticed()
    await site.idle()
    count = sum(isinstance(event, PointsHeld) for event in await site.events(anna))
    assert count > 0, "some were let in before they hung up"
    spent_upt = await assert_ended_once(site, anna, count)
    left = 60 - spent_upt // POINT
    del upstream.by_model[model]
    replies = await asyncio.gather(*(site.ask(anna.key, chat(model)) for _ in range(left + 5)))
    assert sorted(reply.status for reply in replies) == [200] * left + [402] * 5


async def test_usage_is_charged_to_the_last_token_when_processes_are_stopped_and_killed_under_load(
    database: Database, tmp_path: Path, upstream: FakeUpstream
) -> None:
    """Stopped: Σ charges = Σ reported. Killed: so for every answer that a client has whole."""
    leases = {"LEASE_SECONDS": "2", "LEASE_RENEW_SECONDS": "0.5"}
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    upstream.default = Script(usage=usage, usage_varies=True, chunk_delay_s=0.005)
    async with running_site(database, tmp_path / "here", lease_sweep_seconds=0.3) as site:
        await site.serves(upstream.url)
        stopped_one, killed_one = await site.customer("1000"), await site.customer("1000")
        async with (
            role_process("api", database, tmp_path / "a", **leases) as stopped,
            role_process("api", database, tmp_path / "b", **leases) as killed,
        ):
            loads = [
                asyncio.create_task(_load(stopped.url, stopped_one.key)),
                asyncio.create_task(_load(killed.url, killed_one.key)),
            ]
            await upstream.arrived(120, 20)
            stopped.terminate()
            killed.process.kill()
            whole = await asyncio.gather(*loads)
            assert await stopped.ended() == 0
        await _all_ended(site, stopped_one, killed_one)
        reported = {name: _cost(said) for name, said in upstream.reported().items()}
        first = {end.request_id: end for end in outcomes(await site.events(stopped_one))}
        assert {name: _charge(end) for name, end in first.items()} == {
            name: reported.get(name, 0) for name in first
        }
        assert len(first) >= len(whole[0]) > 0
        second = {end.request_id: end for end in outcomes(await site.events(killed_one))}
        assert len(whole[1]) > 0
        for name in whole[1]:
            end = second[RequestId(name)]
            assert isinstance(end, HoldSettled)
            assert (end.basis, end.amount_upt) == (Basis.REPORTED, reported[name])
        asked = {seen.request_id for seen in upstream.seen}
        assert asked <= first.keys() | second.keys(), "nobody was asked without an outcome"
    await readable(database.app_url)
    report = await audited(database.app_url)
    assert report.ok, report.first


async def _load(url: str, key: str) -> list[str]:
    """Twelve clients until the process is gone; the requests whose answers came whole."""
    whole: list[str] = []

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        while True:
            body = chat(stream=number % 2 == 0)
            async with session.post(
                f"{url}/v1/chat/completions", headers=bearer(key), json=body
            ) as response:
                answer = await response.read()
                if response.status != 200:
                    return
                if number % 2 or answer.endswith(b"data: [DONE]\n\n"):
                    whole.append(response.headers["x-request-id"])

    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        ends = await asyncio.gather(
            *(client(session, number) for number in range(12)), return_exceptions=True
        )
    assert all(end is None or isinstance(end, aiohttp.ClientError) for end in ends), ends
    return whole


async def _all_ended(site: RunningSite, *customers: Customer) -> None:
    for customer in customers:
        async with asyncio.timeout(20):
            while (await site.account(customer)).holds:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def _cost(said: dict[str, int]) -> int:
    return cost_of(PRICE, Usage(input=said["prompt_tokens"], output=said["completion_tokens"]))


def _charge(end: HoldSettled | HoldReleased) -> int:
    return end.amount_upt if isinstance(end, HoldSettled) else 0


async def test_what_a_key_may_spend_is_exact_over_restarts_and_replicas(
    database: Database, tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with running_site(database, tmp_path / "here") as site:
        await site.serves(upstream.url, price=ONE_A_CALL)
        anna = await site.customer("100", quota_upt=10 * POINT, reset=Reset.DAILY)
        async with aiohttp.ClientSession() as session:

            async def ask(url: str) -> int:
                async with session.post(
                    f"{url}/v1/chat/completions", headers=bearer(anna.key), json=chat()
                ) as response:
                    await response.read()
                    return response.status

            async with role_process("api", database, tmp_path / "a") as first:
                assert [await ask(url) for url in (first.url, site.url) * 2] == [200] * 4
                first.process.kill()
                await first.ended()
            async with role_process("api", database, tmp_path / "a") as again:
                urls = (again.url, site.url)
                statuses = await asyncio.gather(*(ask(urls[n % 2]) for n in range(30)))
        assert sorted(statuses) == [200] * 6 + [402] * 24
        assert (await site.account(anna)).charged_upt == 10 * POINT
