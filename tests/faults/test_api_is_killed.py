"""`kill -9` of the answering process under load, at moments spread over the phases of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from random import Random

from tests.conftest import Database
from tests.faults.books import (
    check_audit,
    check_states,
    open_leases,
    read_books,
    until_ended,
)
from tests.faults.chance import rounds
from tests.faults.conftest import MakeRole
from tests.faults.load import Ending, Load
from tests.faults.roles import Role
from tests.faults.site import (
    LOAD_MODELS,
    PLENTY,
    SCANT,
    open_accounts,
    outside_database,
    until_served,
)
from tests.upstream import FakeUpstream, Seen

WIDTH = 16
MOMENT_TIMEOUT_S = 20.0


class Phase(StrEnum):
    """Where a call is when the process dies: the trigger, and how long after it at most."""

    BEFORE_HOLD = "before the hold"
    HEAD = "waiting for the provider's head"
    CHUNKS = "between chunks"
    SETTLE = "at settle"


AFTER_S = {
    Phase.BEFORE_HOLD: 0.004,
    Phase.HEAD: 0.12,
    Phase.CHUNKS: 0.02,
    Phase.SETTLE: 0.006,
}
SIGNS = {Phase.HEAD: "arrived", Phase.CHUNKS: "chunk", Phase.SETTLE: "reported"}


class Moment:
    """Waits for the n-th sign of a phase among the calls of this round."""

    def __init__(self, phase: Phase, count: int) -> None:
        self._sign = SIGNS.get(phase)
        self._left = count
        self.reached = asyncio.Event()

    def on_upstream(self, what: str, seen: Seen) -> None:
        if what == self._sign:
            self._one()

    def on_start(self) -> None:
        if self._sign is None:
            self._one()

    def _one(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self.reached.set()


async def killed_at(
    phase: Phase, role: Role, load: Load, upstream: FakeUpstream, chance: Random
) -> int:
    """Kills the process in this phase; how many calls were in flight."""
    moment = Moment(phase, chance.randint(1, WIDTH))
    upstream.tell = moment.on_upstream
    load.on_start = moment.on_start
    async with asyncio.timeout(MOMENT_TIMEOUT_S):
        await moment.reached.wait()
    await asyncio.sleep(chance.uniform(0, AFTER_S[phase]))
    in_flight = len(load.in_flight)
    load.up.clear()
    role.kill()
    return in_flight


def phases(chance: Random) -> Callable[[int], Phase]:
    order = list(Phase)
    chance.shuffle(order)
    return lambda number: order[number % len(order)]


async def test_after_a_kill_every_hold_gets_one_outcome_and_its_exact_charge(
    database: Database, upstream: FakeUpstream, make_role: MakeRole, chance: Random
) -> None:
    role = make_role("serve", outside_database(database.app_url, database.owner_url))
    await role.start()
    accounts = await open_accounts(role.environment, upstream.url, (PLENTY, PLENTY, SCANT))
    await until_served(role.url, accounts)
    phase_of = phases(chance)
    with_holds = lost_at_most = 0
    orphaned: set[str] = set()
    async with Load(role.url, accounts, LOAD_MODELS, chance, WIDTH) as load:
        for number in range(rounds()):
            await load.until_answered(chance.randint(1, WIDTH))
            lost_at_most += await killed_at(phase_of(number), role, load, upstream, chance)
            orphans = await open_leases(database.app_url)
            orphaned |= orphans
            with_holds += bool(orphans)
            await role.start()
            load.up.set()
            await until_ended(database.app_url, orphans)
    await until_ended(database.app_url)
    books = await read_books(database.app_url)
    unpaid = books.check(accounts, load.calls, upstream.reported())
    print(f"{len(books.requests)} requests, {with_holds} of {rounds()} kills with holds open")
    print(f"completed by the provider, not charged as reported: {unpaid}")
    assert len(unpaid) <= lost_at_most
    assert orphaned.issuperset(unpaid), "only what a kill interrupted may go uncharged"
    assert {call.status for call in load.ended(Ending.REFUSED)} <= {402, 503}
    assert with_holds * 2 > rounds(), "most kills must meet open holds"
    assert load.ended(Ending.BROKEN), "a kill under load breaks calls"
    await check_states(database.app_url, books)
    await check_audit(role.environment)
