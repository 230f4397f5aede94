"""A small site with everything an audit looks at: people, keys, channels, prices, requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

from backend.folds import ALL_FOLDS
from backend.journal.commands import Accept, Command, Landed
from backend.journal.tail import TableTail
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import connect, fetch_one, make_pool
from backend.ledger.decide import (
    SettleAsked,
    decide_extend,
    decide_late,
    decide_release,
    decide_settle,
)
from projections.audit.report import AuditReport
from projections.audit.run import AuditAsked, run_audit
from projections.declared import live_consumers
from projections.tables import ensure_tables
from schemas.catalog import ChannelAdded, ChannelDisabled, ChannelSettings, PriceSet
from schemas.identity import KeyCreated, PersonRegistered
from schemas.ids import PersonId, RequestId, account_stream, late_command_id, outcome_command_id
from schemas.ledger import PointsHeld, ReleaseReason, Served
from schemas.money import MicroPoints
from schemas.prices import Price, PriceRef, Terms
from schemas.usage import Basis, Usage
from tests.given import (
    A_POINT_A_CALL,
    MODEL,
    PER_TOKEN,
    POINT,
    granting,
    hold_asked,
    holding,
    new_id,
    new_request,
    on_first,
    opening,
)
from tests.integration.log_writing import until

CALLED = "called"
"""A model priced per call; `MODEL` is priced per token."""
HELD_BACK = """
SELECT count(*) FROM event_log WHERE xid >= pg_snapshot_xmin(pg_current_snapshot())
"""
CAUGHT_UP = """
SELECT count(*) FROM streams s
LEFT JOIN consumer_streams c ON c.stream = s.stream AND c.consumer = %(consumer)s
WHERE s.stream LIKE 'account:%%' AND s.version IS DISTINCT FROM c.version
"""


_TERMS: dict[str, Terms] = {}
"""Of each request that was let in, on whichever site: whatever ends it is on the same ones."""


class Site:
    """Writes to the log as the services do, without their sealing."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    async def do(self, command: Command) -> Landed:
        outcome = await self.writer.submit(command)
        assert isinstance(outcome, Landed), outcome
        return outcome

    async def record(self, stream: str, event: Any, command_id: UUID | None = None) -> None:
        """One event as it is, if the stream's fold takes it."""
        await self.do(
            Command(command_id or new_id(), (stream,), lambda _, __: Accept(((0, event),)))
        )

    async def catalogue(self) -> None:
        settings = ChannelSettings("first", "openai", "http://127.0.0.1:9/v1", (MODEL, CALLED))
        await self.record("channel:1", ChannelAdded(settings))
        await self.record("channel:1", ChannelDisabled("for a while"))
        await self.record(f"price:{MODEL}", PriceSet(PER_TOKEN))
        await self.record(f"price:{CALLED}", PriceSet(A_POINT_A_CALL))

    async def person(self, number: int, points: int) -> None:
        person = PersonId(number)
        await self.record(f"person:{number}", PersonRegistered(b"sealed", b"hmac"))
        await self.record(f"key:{number}", KeyCreated(person, b"sealed", "mine", "sk-…abcd"))
        await self.do(opening(number))
        await self.do(granting(number, points * POINT))

    async def hold(self, account: int, model: str = MODEL) -> RequestId:
        request = new_request()
        asked = hold_asked(
            request, price_of(model), model=model, price_ref=PriceRef(model, 1), output_limit=100
        )
        self.held(await self.do(holding(account, asked, UUID(request))))
        return request

    def held(self, landed: Landed) -> None:
        """Remembers on what terms a request was let in."""
        for event in landed.events:
            if isinstance(event, PointsHeld):
                _TERMS[event.request_id] = event.terms

    def on_its_terms(self, asked: SettleAsked) -> SettleAsked:
        """Usage that comes when the hold is gone, as whoever made the call knows it."""
        return msgspec.structs.replace(asked, terms=_TERMS[asked.request_id])

    async def settle(self, account: int, request: RequestId, usage: Usage | None = None) -> None:
        await self.do(self.settling(account, request, MODEL, usage or Usage(input=40, output=60)))

    def settling(self, account: int, request: RequestId, model: str, usage: Usage) -> Command:
        asked = settle_of(request, model, usage)
        return on_first(
            (account_stream(PersonId(account)),),
            lambda state, _, __: decide_settle(state, asked),
            outcome_command_id(request),
            urgent=True,
        )

    async def release(self, account: int, request: RequestId, reason: ReleaseReason) -> None:
        await self.do(
            on_first(
                (account_stream(PersonId(account)),),
                lambda state, _, __: decide_release(state, request, reason, Served(status=502)),
                outcome_command_id(request),
            )
        )

    async def extend(self, account: int, request: RequestId) -> None:
        await self.do(
            on_first(
                (account_stream(PersonId(account)),),
                lambda state, _, __: decide_extend(state, request, 5_000),
            )
        )

    async def late(self, account: int, request: RequestId, sweep: UUID, charged_upt: int) -> None:
        asked = self.on_its_terms(settle_of(request, MODEL, Usage(input=50, output=70)))
        await self.do(
            on_first(
                (account_stream(PersonId(account)),),
                lambda state, version, _: decide_late(
                    state, version, asked, sweep, MicroPoints(charged_upt)
                ),
                late_command_id(request),
            )
        )


def price_of(model: str) -> Price:
    return PER_TOKEN if model == MODEL else A_POINT_A_CALL


def settle_of(request: RequestId, model: str, usage: Usage) -> SettleAsked:
    return SettleAsked(
        request_id=request,
        usage=usage,
        basis=Basis.REPORTED,
        price=price_of(model),
        price_ref=PriceRef(model, 1),
        served=Served(channel=None, status=200, duration_ms=900, first_token_ms=120, attempts=1),
    )


@asynccontextmanager
async def open_site(url: str) -> AsyncGenerator[Site]:
    watch = LogWatch(url)
    writer = Writer(url, ALL_FOLDS, SystemClock(), SystemRandomness(), watch)
    watch.start()
    writer.start()
    try:
        yield Site(writer)
    finally:
        await writer.stop()
        await watch.stop()


async def make_history(url: str) -> None:
    """Every kind of event of the ledger; account:1 ends at version 12, account:2 at 8."""
    async with open_site(url) as site:
        await site.catalogue()
        await site.person(1, 100)
        await site.person(2, 1)
        first = await site.hold(1)
        await site.settle(1, first)
        called = await site.hold(1, CALLED)
        await site.do(site.settling(1, called, CALLED, Usage(input=5, output=5)))
        longer = await site.hold(1)
        await site.extend(1, longer)
        await site.release(1, longer, ReleaseReason.UPSTREAM_ERROR)
        swept = await site.hold(1)
        await site.release(1, swept, ReleaseReason.SWEPT)
        await site.late(1, swept, await event_id_of(url, "account:1", 11), 0)
        # More than the account can pay for: an extension, a charge and a shortfall.
        await site.do(site.settling(2, await site.hold(2), MODEL, Usage(input=4_000, output=9_000)))
        await site.do(granting(2, POINT))
        await site.hold(2)
    await readable(url)


async def event_id_of(url: str, stream: str, version: int) -> UUID:
    async with await connect(url, application="test") as connection:
        row = await fetch_one(
            connection,
            "SELECT event_id FROM event_log WHERE stream = %(stream)s AND version = %(version)s",
            {"stream": stream, "version": version},
        )
    assert row is not None
    return row[0]


async def project(url: str) -> None:
    """Runs the projections until they have applied everything."""
    watch = LogWatch(url)
    consumers = live_consumers()
    async with make_pool(url, application="test", size_max=3) as pool:
        await ensure_tables(pool)
        tail = TableTail(pool, watch, SystemRandomness(), consumers)
        watch.start()
        tail.start()

        async def caught_up() -> bool:
            async with pool.connection() as connection:
                behind = [
                    await fetch_one(connection, CAUGHT_UP, {"consumer": consumer.name})
                    for consumer in consumers
                ]
            return all(row == (0,) for row in behind)

        try:
            await until(caught_up, what="the projections apply the history")
            await readable(url)
        finally:
            await tail.stop()
            await watch.stop()


async def readable(url: str) -> None:
    """Waits until readers may see every row: other databases' transactions hold them back too."""
    async with await connect(url, application="test") as connection:

        async def all_below() -> bool:
            row = await fetch_one(connection, HELD_BACK)
            return row == (0,)

        await until(all_below, what="every row is readable")


async def audited(url: str, data_dir: Path | None = None, **more: Any) -> AuditReport:
    return await run_audit(AuditAsked(url, data_dir, **more), ALL_FOLDS)


def copy_of(server: Any, database: Any) -> Any:
    """Another database with the same content; nobody may be connected to the first."""
    server._count += 1
    return server._urls(server._create(f"copy_{server._count}", database.name))


def tamper(superuser_url: str, *statements: str) -> None:
    """Changes the database as a superuser with triggers off."""
    with psycopg.connect(superuser_url) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(sql.SQL(statement))  # pyright: ignore[reportArgumentType]
