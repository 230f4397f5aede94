"""A large log made up from a seed: calls that end in every way there is, and all else that happens.

Every event is really decided and really hashed; see `fast_journal` for the road into the tables.
"""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg

from backend.identity.key_epochs import KeyEpochs
from backend.identity.wrapping import Epoch
from backend.journal.commands import Accept, LeaseSweep
from backend.journal.entity_ids import pass_restored_ids
from backend.journal.reader import site_of
from backend.kit.clock import SystemRandomness
from backend.kit.postgres import make_pool
from backend.kit.secrets import EpochKey, SiteSecret
from backend.ledger.account import Account
from backend.ledger.admission import HoldAsked, decide_hold
from backend.ledger.decide import (
    SettleAsked,
    decide_extend,
    decide_late,
    decide_release,
    decide_settle,
)
from backend.ledger.decide_codes import decide_issue_code, decide_redeem, decide_void_code
from backend.ledger.decide_correction import CorrectionAsked, decide_correction
from backend.ledger.decide_plans import decide_expire, decide_subscribe
from schemas.event import Recorded
from schemas.ledger import (
    CodeIssued,
    CodeKind,
    HoldReleased,
    HoldSettled,
    PointsHeld,
    ReleaseReason,
    Served,
    ShortfallRecorded,
)
from schemas.prices import Price
from schemas.usage import Basis, Usage
from tests.conftest import Database
from tests.fast_journal import CopiedJournal, FastJournal, Line, MemoryJournal
from tests.large_site import MODELS, POINT, Site, Somebody

COPY_KEYS: Final = "COPY data_keys (account, wrapped) FROM STDIN"
ACCOUNT_EVENTS: Final = 100
"""About so many events for each account."""
BEGIN_US: Final = 1_750_000_000_000_000
"""Fixed, so that one seed is one history."""
DAYS: Final = 130
DAY_US: Final = 86_400_000_000
IN_FLIGHT_MAX: Final = 300
SHAPES: Final = 400


class Call(msgspec.Struct, gc=False):
    """A request that was let in."""

    who: Somebody
    number: int
    text: str
    held: PointsHeld
    price: Price
    usage: Usage


class Swept(msgspec.Struct):
    """A request that a sweep ended; its real usage may still come."""

    call: Call
    event_id: int
    accounted_upt: int


class Made(msgspec.Struct, frozen=True):
    events: int
    accounts: int
    seconds: float
    """Of making and copying; without the indexes' statistics."""
    cpu_s: float
    """Of this process; the database's is its own."""


class Life(Site):
    def __init__(
        self,
        journal: FastJournal,
        secret: SiteSecret,
        epoch: Epoch,
        seed: int,
        begin_us: int,
        events: int,
    ) -> None:
        super().__init__(journal, secret, epoch, seed, begin_us)
        self._events: Final = events
        self._step_us: Final = 2 * DAYS * DAY_US // events
        self._calls: Final[list[Call]] = []
        self._swept: Final[list[Swept]] = []
        self._codes: Final[list[tuple[Line, CodeKind]]] = []
        self._last: tuple[Line, int, Any] | None = None
        self._usages: Final = {
            model: [self._usage(model) for _ in range(SHAPES)] for model in MODELS
        }
        self._served: Final = [self._answer() for _ in range(SHAPES)]
        self._rare: Final[tuple[Callable[[], None], ...]] = (
            self._subscribe, self._subscribe, self._subscribe, self._redeem, self._redeem,
            self._redeem, self._top_up, self._top_up, self._correct, self._correct, self._extend,
            self._extend, self._extend, self._late, self._late, self._late, self._void,
        )  # fmt: skip
        self._rarest: Final[tuple[Callable[[], None], ...]] = (
            self._reprice, self._reprice, self.accept_list, self._regroup, self.define_plans,
            self.set_limit, self.change_channel, self.revoke_key, self.invite, self.invite,
        )  # fmt: skip

    def run(self) -> None:
        """From the first channel to the last event."""
        self.catalogue()
        for _ in range(max(10, self._events // ACCOUNT_EVENTS)):
            self.register()
        random, step_us = self.rng.random, self._step_us
        while self.journal.events < self._events:
            self.at_us += int(random() * step_us) + 1
            chance = random()
            if chance < 0.03:
                rare = self._rarest if random() < 0.02 else self._rare
                rare[int(random() * len(rare))]()
            elif chance < 0.52 and len(self._calls) < IN_FLIGHT_MAX:
                self._hold()
            elif self._calls:
                self._end()

    def _hold(self) -> None:
        random, people = self.rng.random, self.people
        who = people[int(random() * len(people))]
        keys = who.keys
        model = MODELS[int(random() * len(MODELS))]
        price, ref = self.prices[model]
        usage = self._usages[model][int(random() * SHAPES)]
        number = self.new_id()
        text = _uuid_text(number)
        limited = random() < 0.7
        asked = HoldAsked(
            request_id=text,
            purpose="relay.chat" if random() < 0.8 else "chat",
            key=keys[0] if len(keys) == 1 else keys[int(random() * len(keys))],
            model=model,
            price=price,
            price_ref=ref,
            streamed=random() < 0.6,
            input_bound=usage.input_total + 50,
            output_limit=max(1, usage.output) if limited else None,
            choices=1,
            channels=(1, 2),
            lease_s=30,
            concurrency=20,
            plans=self.plans,
            groups=self.groups,
        )
        account = who.account
        events = self.take(
            (account,), decide_hold(account.state, account.version, asked, self.at_us), number
        )
        if events and isinstance(events[0], PointsHeld):
            self._calls.append(Call(who, number, text, events[0], price, usage))
        elif random() < 0.3:
            self.grant(who, POINT)

    def _end(self) -> None:
        calls = self._calls
        place = int(self.rng.random() * len(calls))
        call, calls[place] = calls[place], calls[-1]
        calls.pop()
        chance = self.rng.random()
        if chance < 0.94:
            self._settle(call, None)
        elif chance < 0.97:
            reasons = (
                ReleaseReason.UPSTREAM_ERROR,
                ReleaseReason.CLIENT_LEFT,
                ReleaseReason.UPSTREAM_CUT,
            )
            self._release(call, reasons[call.number >> 7 & 1], None)
        elif chance < 0.985:
            self._settle(call, LeaseSweep(call.text, 1))
        else:
            self._release(call, ReleaseReason.SWEPT, LeaseSweep(call.text, 1))

    def _settle(self, call: Call, sweep: LeaseSweep | None) -> None:
        account = call.who.account
        asked = self._asked(call)
        events = self.take((account,), decide_settle(account.state, asked, sweep), call.number | 1)
        place = next(i for i, event in enumerate(events) if isinstance(event, HoldSettled))
        self._last = account, self.ids[place], events[place]
        if sweep is not None:
            accounted_upt = sum(
                event.amount_upt
                for event in events
                if isinstance(event, HoldSettled | ShortfallRecorded)
            )
            self._swept.append(Swept(call, self.ids[place], accounted_upt))

    def _asked(self, call: Call) -> SettleAsked:
        held = call.held
        basis = Basis.COUNTED if call.number >> 9 & 15 == 0 else Basis.REPORTED
        return SettleAsked(
            call.text, call.usage, basis, call.price, held.price,
            self._served[call.number % SHAPES], held.terms, held.plan, held.key, held.quota,
        )  # fmt: skip

    def _release(self, call: Call, reason: ReleaseReason, sweep: LeaseSweep | None) -> None:
        account = call.who.account
        served = self._served[call.number % SHAPES]
        decision = decide_release(account.state, call.text, reason, served, sweep)
        (event,) = self.take((account,), decision, call.number | 1)
        assert isinstance(event, HoldReleased)
        if sweep is not None:
            self._swept.append(Swept(call, self.ids[0], 0))

    def _late(self) -> None:
        """Usage that came after a sweep."""
        if not self._swept:
            return
        swept = self._swept.pop(int(self.rng.random() * len(self._swept)))
        call, account = swept.call, swept.call.who.account
        decision = decide_late(
            account.state, account.version, self._asked(call), UUID(int=swept.event_id),
            swept.accounted_upt,
        )  # fmt: skip
        self.take((account,), decision, call.number | 2)

    def _extend(self) -> None:
        if self._calls:
            call = self.rng.choice(self._calls)
            account = call.who.account
            wanted_upt = self.rng.randrange(1, POINT // 10)
            self.take((account,), decide_extend(account.state, call.text, wanted_upt))

    def _top_up(self) -> None:
        who = self.rng.choice(self.people)
        self.grant(who, POINT if who.poor else 100 * POINT)

    def _correct(self) -> None:
        if self._last is None:
            return
        account, event_id, event = self._last
        asked = CorrectionAsked(self.rng.randrange(-POINT, POINT), UUID(int=event_id), "cli")
        self.take((account,), decide_correction(account.state, account.version, asked, event))

    def _redeem(self) -> None:
        """A code of a batch; a new batch where none is left."""
        if not self._codes:
            self._issue()
        code, kind = self._codes.pop()
        who, at_us = self.rng.choice(self.people), self.at_us
        decision = decide_redeem(code.standing, who.account.standing, kind, who.number, at_us)
        if isinstance(decision, Accept):
            # The account is the command's home.
            events = tuple((1 - index, event) for index, event in decision.events)
            decision = Accept(events)
        self.take((who.account, code), decision)

    def _issue(self) -> None:
        kind = self.rng.choice((CodeKind.REDEEM, CodeKind.GIFT))
        type_ = f"gift {self.rng.randrange(9)}" if kind is CodeKind.GIFT else ""
        event = CodeIssued(kind, self.rng.randrange(1, 9) * POINT, "batch", "ABCD", "cli", type_)
        lines = [self.journal.line(f"code:{self.rng.getrandbits(256):064x}") for _ in range(8)]
        issued = [decide_issue_code(line.standing, event) for line in lines]
        self.take(lines, Accept(tuple((i, event) for i, one in enumerate(issued) if one)))
        self._codes.extend((line, kind) for line in lines)

    def _void(self) -> None:
        if self._codes:
            code, _ = self._codes.pop()
            self.take((code,), decide_void_code(code.standing, "cli"))

    def _subscribe(self) -> None:
        """Bought, renewed or changed; what is over is noted."""
        who, at_us = self.rng.choice(self.people), self.at_us
        account = who.account
        state: Account = account.state
        if state.subscription is not None and not state.subscription.active(at_us):
            self.take((account,), decide_expire(state, at_us))
            return
        offered = self.plans[self.rng.randrange(1, 4)]
        months = 1 if self.rng.random() < 0.8 else 12
        decision = decide_subscribe(state, account.version, offered, months, at_us, deliberate=True)
        self.take((account,), decision)

    def _reprice(self) -> None:
        self.set_price(self.rng.choice(MODELS))

    def _regroup(self) -> None:
        self.define_group(self.rng.choice(tuple(self.groups)))

    def _usage(self, model: str) -> Usage:
        rng = self.rng
        if model == "painter":
            return Usage(images=rng.randrange(1, 4))
        usage = Usage(input=rng.randrange(10, 3_000), output=rng.randrange(0, 2_000))
        if model == "caching":
            usage = msgspec.structs.replace(
                usage, cached_input=rng.randrange(4_000), cache_write=rng.randrange(500),
                cache_write_1h=rng.randrange(100), searches=rng.randrange(2),
            )  # fmt: skip
        if model == "clever":
            reasoning = rng.randrange(usage.output + 1)
            usage = msgspec.structs.replace(
                usage, cached_input=rng.randrange(900), reasoning=reasoning
            )
        return usage

    def _answer(self) -> Served:
        first_ms = self.rng.randrange(50, 900)
        return Served(
            self.rng.randrange(1, 3), "upstream-model", 200, first_ms + self.rng.randrange(9_000),
            first_ms, 1 + (self.rng.random() < 0.05),
        )  # fmt: skip


def _uuid_text(number: int) -> str:
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def rows_of_a_life(events: int, seed: int = 1, site_id: UUID | None = None) -> list[Recorded]:
    """The same, in memory: nothing is written anywhere."""
    journal = MemoryJournal(site_id or UUID(int=seed))
    secret = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
    epoch = Epoch(bytes(16), EpochKey(bytes(32)))
    Life(journal, secret, epoch, seed, BEGIN_US, events).run()
    return journal.rows


async def write_large_log(database: Database, secret_text: str, events: int, seed: int = 1) -> Made:
    """Fills an empty, migrated database with a log of so many events."""
    secret, randomness = SiteSecret(secret_text), SystemRandomness()
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    async with make_pool(database.app_url, application="test", size_max=2) as pool:
        async with pool.connection() as connection:
            site_id, _, _ = await site_of(connection)
            epoch = await KeyEpochs(pool, secret, randomness).newest(connection)
        journal = CopiedJournal(site_id, database.app_url)
        life = Life(journal, secret, epoch, seed, BEGIN_US, events)
        gc.freeze()
        life.run()
        journal.close()
        _copy_keys(database.app_url, life.data_keys)
        async with pool.connection() as connection:
            await pass_restored_ids(connection)
    seconds, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    gc.unfreeze()
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        connection.execute("ANALYZE")
    return Made(journal.events, len(life.people), seconds, cpu_s)


def _copy_keys(url: str, keys: list[tuple[int, bytes]]) -> None:
    with (
        psycopg.connect(url) as connection,
        connection.cursor() as cursor,
        cursor.copy(COPY_KEYS) as copy,
    ):
        for row in keys:
            copy.write_row(row)
