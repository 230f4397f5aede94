"""Silence, a database that goes away, and a process that is asked to stop: calls still end once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from schemas.ledger import HoldReleased, HoldSettled
from schemas.usage import Basis
from tests.conftest import Database
from tests.integration.identity_site import outage, until
from tests.site import RunningSite, bearer, chat, role_process, running_site
from tests.upstream import FakeUpstream, Script

KEEPALIVE_S = 0.25
COMMENT = b": keep-alive\n\n"


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def test_a_waiting_client_gets_comments_and_then_the_answer_or_an_error_as_a_frame(
    database: Database, tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with running_site(database, tmp_path, relay_keepalive_s=KEEPALIVE_S) as site:
        await site.serves(upstream.url)
        anna = await site.customer()
        await _comments_before_and_within(site, upstream, anna.key)
        await _error_after_a_comment(site, upstream, anna.key)
        await _other_channel_after_a_comment(site, upstream, anna.key)
        await _no_comment_while_it_flows(site, upstream, anna.key)
        kinds = [type(end) for end in await site.ended(anna, 4)]
        assert kinds == [HoldSettled, HoldReleased, HoldSettled, HoldSettled]
        assert (await site.account(anna)).charged_upt == 3 * 1500


async def _comments_before_and_within(site: RunningSite, upstream: FakeUpstream, key: str) -> None:
    """A provider's own comments are no sign of life that the client could see."""
    upstream.play(Script(gated=True, comment_first=True))
    async with site.stream(key, chat()) as answer:
        assert await answer.frames(2) == [COMMENT, COMMENT]
        seen = await upstream.arrived()
        seen.allow(1)
        frame = await answer.frame()
        while frame == COMMENT:
            frame = await answer.frame()
        assert b"Hel" in frame
        assert await answer.frame() == COMMENT
        seen.allow(10)
        assert (await answer.rest()).endswith(b": suanpan-points 0.0015\n\ndata: [DONE]\n\n")


async def _no_comment_while_it_flows(site: RunningSite, upstream: FakeUpstream, key: str) -> None:
    """Longer in all than the silence that a comment is due after, never silent for that long."""
    upstream.play(Script(("word ",) * 12, chunk_delay_s=KEEPALIVE_S / 5))
    assert COMMENT not in (await site.ask(key, chat(stream=True))).body


async def _error_after_a_comment(site: RunningSite, upstream: FakeUpstream, key: str) -> None:
    upstream.play(Script(status=500, first_byte_delay_s=2.5 * KEEPALIVE_S))
    async with site.stream(key, chat()) as answer:
        assert (await answer.opened()).status == 200
        assert await answer.frame() == COMMENT
        rest = (await answer.rest()).replace(COMMENT, b"")
    assert rest.startswith(b'data: {"error":{"message":"The model provider failed to answer."')
    assert rest.count(b"data: ") == 1


async def _other_channel_after_a_comment(
    site: RunningSite, upstream: FakeUpstream, key: str
) -> None:
    """A comment is no byte of an answer: the next channel is still tried."""
    async with FakeUpstream(Script(status=500, first_byte_delay_s=2 * KEEPALIVE_S)) as slow:
        model = site.model()
        await site.serves(slow.url, model, priority=1)
        await site.serves(upstream.url, model)
        body = (await site.ask(key, chat(model, stream=True))).body
    assert body.startswith(COMMENT)
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in body


async def test_a_settlement_that_postgres_cannot_take_is_spooled_and_lands_once_afterwards(
    database: Database, tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with running_site(
        database,
        tmp_path,
        relay_keepalive_s=60.0,
        lease_seconds=60.0,
        lease_sweep_seconds=0.3,
    ) as site:
        await site.serves(upstream.url)
        anna = await site.customer()
        upstream.play(Script(gated=True))
        async with site.stream(anna.key, chat()) as answer:
            seen = await upstream.arrived()
            seen.allow(1)
            await answer.frame()
            with outage(database):
                seen.allow(10)
                body, *refusals = await asyncio.gather(
                    answer.rest(),
                    site.ask(anna.key, chat()),
                    site.ask(anna.key, chat(stream=True)),
                    site.ask(anna.key, chat(), idempotency_key="k"),
                    site.get("/v1/dashboard/billing/subscription", anna.key),
                )
                spooled = tmp_path / "data" / "spool" / f"{seen.request_id}.json"
                assert spooled.exists()
        assert b"[DONE]" not in body
        assert b"suanpan-points" not in body
        last = body.split(b"\n\n")[-2]
        assert b'"code":"settlement_pending"' in last
        assert b"nothing was charged" not in last
        for reply in refusals:
            assert (reply.status, reply.error["code"]) == (503, "service_unavailable")
            assert int(reply.headers["retry-after"]) > 0
        assert len(upstream.seen) == 1
        await until(lambda: not spooled.exists())
        settled = [end for end in await site.ended(anna) if isinstance(end, HoldSettled)]
        assert len(settled) == 1
        assert (settled[0].request_id, settled[0].basis) == (seen.request_id, Basis.REPORTED)
        assert (await site.account(anna)).charged_upt == 1500


async def test_a_stopping_process_lets_its_streams_end_and_settles_them(
    database: Database, tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with running_site(database, tmp_path / "here") as site:
        await site.serves(upstream.url)
        anna = await site.customer()
        upstream.play(Script(gated=True), Script(gated=True))
        async with (
            role_process("api", database, tmp_path / "api") as api,
            aiohttp.ClientSession() as session,
        ):
            streamed = asyncio.create_task(_body(session, api.url, anna.key, stream=True))
            whole = asyncio.create_task(_body(session, api.url, anna.key))
            await upstream.arrived(2)
            api.terminate()
            await _refuses(api.url)
            for seen in upstream.seen:
                seen.allow(10)
            assert (await streamed).endswith(b": suanpan-points 0.0015\n\ndata: [DONE]\n\n")
            assert b'"total_tokens": 12' in await whole
            assert await api.ended() == 0
            assert "Traceback" not in api.log
        ends = await site.ended(anna, 2)
        assert [type(end) for end in ends] == [HoldSettled] * 2
        assert (await site.account(anna)).charged_upt == 2 * 1500


async def _body(session: aiohttp.ClientSession, url: str, key: str, **more: Any) -> bytes:
    async with session.post(
        f"{url}/v1/chat/completions", headers=bearer(key), json=chat(**more)
    ) as response:
        assert response.status == 200
        return await response.read()


async def _refuses(url: str) -> None:
    """Returns once new connections are not taken any more."""
    host, _, port = url.removeprefix("http://").partition(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)
