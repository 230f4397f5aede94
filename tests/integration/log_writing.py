"""Writes to a real log for tests of readers: accounts whose state is just how much came in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import msgspec

from backend.journal.append import append
from backend.journal.batch import Batch
from backend.journal.commands import Accept, Command, Landed, Standing
from backend.journal.fold import Fold, Folds
from backend.journal.heads import load_heads
from backend.journal.reader import read_all, site_of
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import connect
from schemas.event import START, Recorded
from schemas.ids import uuid7
from schemas.ledger import GrantKind, PointsGranted
from schemas.money import MicroPoints


class Tally(msgspec.Struct, frozen=True):
    """State of an account in these tests."""

    granted_upt: int = 0


def _apply(state: Tally, event: PointsGranted, version: int, at_us: int) -> Tally:
    return Tally(state.granted_upt + event.amount_upt)


FOLDS = Folds([Fold("account", Tally(), _apply)])
CLOCK = SystemClock()
RANDOMNESS = SystemRandomness()


def new_id() -> UUID:
    return uuid7(CLOCK.now_us(), RANDOMNESS.bits(74))


def granting(account: int, amount: int, actor: str = "cli") -> Command:
    """A command that appends one PointsGranted to `account:<account>`."""

    def decide(standings: tuple[Standing, ...], at_us: int) -> Accept:
        event = PointsGranted(MicroPoints(amount), GrantKind.OPERATOR, actor)
        return Accept(((0, event),))

    return Command(new_id(), (f"account:{account}",), decide)


class Log:
    """A writer and its watch on one database."""

    def __init__(self, url: str, writer: Writer, watch: LogWatch) -> None:
        self.url = url
        self.writer = writer
        self.watch = watch

    async def grant(self, account: int, amount: int = 1, actor: str = "cli") -> None:
        outcome = await self.writer.submit(granting(account, amount, actor))
        assert isinstance(outcome, Landed)

    async def grant_many(self, accounts: Sequence[int], count: int) -> None:
        """`count` events to each account, each account in order, accounts side by side."""

        async def one(account: int) -> None:
            for amount in range(1, count + 1):
                await self.grant(account, amount)

        await asyncio.gather(*(one(account) for account in accounts))

    async def rows(self) -> list[Recorded]:
        return await rows_of(self.url)


@asynccontextmanager
async def open_log(url: str) -> AsyncGenerator[Log]:
    watch = LogWatch(url)
    writer = Writer(url, FOLDS, CLOCK, RANDOMNESS, watch)
    watch.start()
    writer.start()
    try:
        yield Log(url, writer, watch)
    finally:
        await writer.stop()
        await watch.stop()


async def rows_of(url: str) -> list[Recorded]:
    async with await connect(url, application="test") as connection:
        return [row async for page in read_all(connection, START) for row in page]


async def write_slowly(url: str, account: int, count: int, hold_s: Callable[[], float]) -> None:
    """`count` appends to one account, each transaction held open for a while before it commits."""
    async with await connect(url, application="test") as connection:
        site_id, _, _ = await site_of(connection)
        for amount in range(1, count + 1):
            command = granting(account, amount)
            heads = await load_heads(connection, FOLDS, site_id, command.streams)
            batch = Batch(
                FOLDS, {name: head for name, (head, _) in heads.items()}, CLOCK.now_us(), new_id
            )
            batch.add(command)
            async with connection.transaction():
                result = await append(connection, batch.laid_out())
                assert result.landed == {0}
                await asyncio.sleep(hold_s())


async def until(
    condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 30.0, what: str = ""
) -> None:
    """Polls until a condition holds. Fails with `what` at the deadline."""
    deadline_s = CLOCK.monotonic_s() + timeout_s
    while True:
        if await condition():
            return
        assert CLOCK.monotonic_s() < deadline_s, f"not within {timeout_s:g} s: {what or condition}"
        await asyncio.sleep(0.05)
