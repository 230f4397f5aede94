"""Histories of accounts for projection tests: seeded, possible, with every kind of event."""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg

from backend.journal.append import at_text
from backend.journal.commands import Accept
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.decide_plans import decide_subscribe
from backend.ledger.subscription import plan_use
from schemas.event import Recorded, shard_of, topic_of
from schemas.ids import uuid7
from schemas.ledger import (
    AccountOpened,
    GiftTaken,
    GrantKind,
    HoldExtended,
    HoldReleased,
    HoldSettled,
    InvitationRewarded,
    PointsCorrected,
    PointsGranted,
    PointsHeld,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.plans import OfferedPlan, Plan, PlanItem, PlanRef, PlanUse
from schemas.prices import PLAIN_TERMS, PriceRef, Terms
from schemas.registry import encode
from schemas.usage import Basis, Usage

START_US: Final = 1_750_000_000_000_000
PLANS: Final = {
    level: OfferedPlan(
        Plan(f"level {level}", level * 50_000, (PlanItem("i", "Item", ("gpt",), -1),), relay=True),
        PlanRef(level, 4),
    )
    for level in (1, 2, 3)
}
TERMS: Final = Terms(START_US, "pro", 2, 1_500_000)
INSERT: Final = """
INSERT INTO event_log (epoch, xid, event_id, command_id, topic, shard, stream, version, type,
    schema, at, payload, prev_hash, hash)
SELECT 1, pg_current_xact_id(), event_id, command_id, topic, shard, stream, version, type, schema,
    at, convert_to(payload, 'UTF8'), decode(prev_hash, 'hex'), decode(hash, 'hex')
FROM json_to_recordset(%(rows)s::json) AS i(event_id uuid, command_id uuid, topic text,
    shard smallint, stream text, version bigint, type text, schema smallint, at timestamptz,
    payload text, prev_hash text, hash text)
"""
ALL_VISIBLE: Final = """
SELECT coalesce(max(xid) < pg_snapshot_xmin(pg_current_snapshot()), true) FROM event_log
"""


class History:
    """Appends events to streams in memory; `rows` is the log in order."""

    def __init__(self, seed: int = 1) -> None:
        self.random: Final = random.Random(seed)
        self.rows: list[Recorded] = []
        self.states: dict[str, Account] = {}
        self._heads: dict[str, tuple[int, bytes]] = {}
        self.now_us = START_US
        self._plans: Final[dict[str, PlanUse]] = {}
        self._gifts = 0

    def id(self) -> UUID:
        return uuid7(self.now_us, self.random.getrandbits(74))

    def add(self, stream: str, event: Any) -> Recorded:
        """The event's row; an impossible one is recorded too, and leaves the state as it was."""
        version, prev = self._heads.get(stream, (0, sha256(stream.encode()).digest()))
        self.now_us += self.random.randrange(1_000, 40_000)
        payload = encode(event)
        row = Recorded(
            epoch=1,
            xid=len(self.rows) // 7 + 1,
            seq=len(self.rows) + 1,
            event_id=self.id(),
            command_id=self.id(),
            topic=topic_of(stream),
            shard=shard_of(stream),
            stream=stream,
            version=version + 1,
            type=type(event).__name__,
            schema=event.SCHEMA,
            at_us=self.now_us,
            payload=payload,
            prev_hash=prev,
            hash=sha256(prev + payload + bytes([version % 251])).digest(),
        )
        self.rows.append(row)
        self._heads[stream] = (row.version, row.hash)
        self._fold(stream, event, row)
        return row

    def open(self, account: int, amount_upt: int = 10**12) -> str:
        stream = f"account:{account}"
        self.add(stream, AccountOpened(account))
        self.add(stream, PointsGranted(amount_upt, GrantKind.OPERATOR, "cli"))
        return stream

    def hold(
        self,
        stream: str,
        amount_upt: int = 5_000,
        model: str = "gpt",
        key: int = 1,
        terms: Terms = PLAIN_TERMS,
        plan: PlanUse | None = None,
    ) -> str:
        request_id = str(self.id())
        if plan is not None:
            self._plans[request_id], amount_upt = plan, 0
        self.add(
            stream,
            PointsHeld(
                request_id=request_id,
                amount_upt=amount_upt,
                purpose="relay.chat",
                key=key,
                model=model,
                price=PriceRef(model, 3),
                streamed=True,
                input_bound=100,
                output_bound=4_096,
                channels=(7, 8),
                terms=terms,
                plan=plan,
            ),
        )
        return request_id

    def settle(
        self,
        stream: str,
        request_id: str,
        amount_upt: int = 4_000,
        *,
        model: str = "gpt",
        swept: bool = False,
        error: str | None = None,
    ) -> Recorded:
        usage = Usage(input=120, cached_input=30, cache_write=5, output=80, reasoning=20)
        served = Served(7, f"{model}-upstream", 200, 950, 120, 1, error)
        basis = Basis.COUNTED if swept else Basis.REPORTED
        plan = self._plans.get(request_id)
        terms = PLAIN_TERMS if plan is None else TERMS
        amount_upt = amount_upt if plan is None else 0
        event = HoldSettled(
            request_id, amount_upt, usage, basis, PriceRef(model, 3), served, swept, terms, plan
        )
        return self.add(stream, event)

    def release(self, stream: str, request_id: str, reason: ReleaseReason) -> Recorded:
        served = Served(None, None, 502, 300, None, 2, "upstream_error")
        return self.add(stream, HoldReleased(request_id, reason, served))

    def refuse(
        self,
        stream: str,
        model: str = "gpt",
        reason: RefusalReason = RefusalReason.INSUFFICIENT_POINTS,
    ) -> str:
        request_id = str(self.id())
        self.add(
            stream,
            RequestRefused(
                request_id,
                reason,
                1,
                model,
                PriceRef(model, 3),
                70,
            ),
        )
        return request_id

    def late(
        self, stream: str, request_id: str, sweep: Recorded, amount_upt: int = 500
    ) -> Recorded:
        usage = Usage(input=200, output=150, reasoning=10)
        served = Served(8, "other-upstream", 0, 40_000, 110, 1)
        price = PriceRef("gpt", 3)
        plan = self._plans.get(request_id)
        terms = PLAIN_TERMS if plan is None else TERMS
        charged_upt, short_upt = (amount_upt, 9) if plan is None else (0, 0)
        event = UsageLate(
            request_id, sweep.event_id, charged_upt, short_upt, usage, Basis.REPORTED, price,
            served, terms, plan,
        )  # fmt: skip
        return self.add(stream, event)

    def gift(self, stream: str, amount_upt: int = 900) -> Recorded:
        self._gifts += 1
        source = f"code:{self._gifts:064x}"
        return self.add(stream, GiftTaken(f"type {self._gifts}", amount_upt, source))

    def reward(self, stream: str, invited: int, amount_upt: int = 300) -> Recorded:
        return self.add(stream, InvitationRewarded(amount_upt, invited))

    def subscribe(self, stream: str, level: int, months: int = 1) -> list[Recorded]:
        """What a purchase of this level writes, whatever the account has now; [] if refused."""
        state, version = self.states[stream], self._heads[stream][0]
        decision = decide_subscribe(
            state, version, PLANS[level], months, self.now_us, deliberate=True
        )
        if not isinstance(decision, Accept):
            return []
        return [self.add(stream, event) for _, event in decision.events]

    def plan_hold(self, stream: str) -> str | None:
        """A request that the account's plan pays for; None where it has none."""
        use = plan_use(self.states[stream].subscription, PLANS, "gpt", self.now_us, by_relay=True)
        return None if use is None else self.hold(stream, terms=TERMS, plan=use)

    def correct(self, stream: str, corrected: Recorded, amount_upt: int) -> Recorded:
        return self.add(stream, PointsCorrected(amount_upt, corrected.event_id, "person:7"))

    def calls(self, accounts: int, events: int) -> list[Recorded]:
        """The usual mix: holds and settles of many accounts, some open at any moment."""
        streams = [self.open(number) for number in range(1, accounts + 1)]
        waiting: list[tuple[str, str]] = []
        while len(self.rows) < events:
            if len(waiting) > 40 or (waiting and self.random.random() < 0.5):
                stream, request_id = waiting.pop(self.random.randrange(len(waiting)))
                self.settle(stream, request_id)
            else:
                stream = self.random.choice(streams)
                waiting.append((stream, self.hold(stream)))
        return self.rows

    def everything(self, accounts: int, steps: int) -> list[Recorded]:
        """Every kind of event, in a possible order."""
        streams = [self.open(number) for number in range(1, accounts + 1)]
        waiting: list[tuple[str, str, str]] = []
        swept: list[tuple[str, str, Recorded]] = []
        for _ in range(steps):
            self._step(self.random.choice(streams), waiting, swept)
        return self.rows

    def _step(
        self,
        stream: str,
        waiting: list[tuple[str, str, str]],
        swept: list[tuple[str, str, Recorded]],
    ) -> None:
        act = self.random.randrange(16)
        if act >= 12:
            self._wealth(act, stream, waiting)
        elif act == 0:
            self.refuse(stream, reason=self.random.choice(list(RefusalReason)))
        elif act == 1:
            self.correct(stream, self.rows[0], self.random.choice((-40, 25)))
        elif act == 2 and swept:
            self.late(*swept.pop(), amount_upt=self.random.choice((0, 500)))
        elif act <= 6 or not waiting:
            model = self.random.choice(("gpt", "claude"))
            waiting.append((stream, self.hold(stream, 5_000, model), model))
            if act == 3:
                self.now_us += 1_800_000_000
                self.add(stream, HoldExtended(waiting[-1][1], 700))
        else:
            self._end(*waiting.pop(self.random.randrange(len(waiting))), swept)

    def _wealth(self, act: int, stream: str, waiting: list[tuple[str, str, str]]) -> None:
        """Gifts, rewards, and plans that are bought, renewed, changed and used."""
        if act == 12:
            self.gift(stream)
        elif act == 13:
            self.reward(stream, self.random.randrange(100, 200))
        elif act == 14:
            self.now_us += self.random.randrange(3_600_000_000, 9 * 86_400_000_000)
            self.subscribe(stream, self.random.choice((1, 2, 3)), self.random.choice((1, 3)))
        elif (request_id := self.plan_hold(stream)) is not None:
            waiting.append((stream, request_id, "gpt"))

    def _end(
        self, stream: str, request_id: str, model: str, swept: list[tuple[str, str, Recorded]]
    ) -> None:
        how = self.random.randrange(6)
        if how == 0:
            self.release(stream, request_id, ReleaseReason.UPSTREAM_ERROR)
        elif how == 1:
            sweep = self.release(stream, request_id, ReleaseReason.SWEPT)
            swept.append((stream, request_id, sweep))
        elif how == 2:
            sweep = self.settle(stream, request_id, 2_000, model=model, swept=True)
            swept.append((stream, request_id, sweep))
        elif how == 3:
            self.settle(stream, request_id, 5_000, model=model, error="upstream_error")
            self.add(stream, ShortfallRecorded(request_id, 11))
        else:
            self.settle(stream, request_id, self.random.choice((0, 4_000)), model=model)

    def _fold(self, stream: str, event: Any, row: Recorded) -> None:
        before = self.states.get(stream, ACCOUNT.empty)
        try:
            self.states[stream] = ACCOUNT.apply(before, event, row.version, row.at_us)
        except ValueError:
            self.states[stream] = before


def shuffled(rows: Sequence[Recorded], seed: int) -> list[Recorded]:
    """Order per stream kept, streams mixed anew, and some stretches delivered twice."""
    chance = random.Random(seed)
    queues: dict[str, list[Recorded]] = {}
    for row in rows:
        queues.setdefault(row.stream, []).append(row)
    mixed: list[Recorded] = []
    left = dict.fromkeys(queues, 0)
    while left:
        stream = chance.choice(list(left))
        index = left[stream]
        if index > 3 and chance.random() < 0.1:
            index -= chance.randrange(1, 4)
        mixed.append(queues[stream][index])
        left[stream] = index + 1
        if left[stream] == len(queues[stream]):
            del left[stream]
    return mixed


def insert_log(url: str, rows: Iterable[Recorded], rows_per_transaction: int = 500) -> None:
    """Puts rows into `event_log`, in transactions of their own, as a writer would have."""
    encoder = msgspec.json.Encoder()
    given = list(rows)
    with psycopg.connect(url, autocommit=True) as connection:
        for first in range(0, len(given), rows_per_transaction):
            chunk = [_as_given(row) for row in given[first : first + rows_per_transaction]]
            connection.execute(INSERT, {"rows": encoder.encode(chunk).decode()})
        _until_readers_see_it(connection)


def _until_readers_see_it(connection: psycopg.Connection[Any], timeout_s: float = 60.0) -> None:
    """Other databases of the same server may run transactions that are older than our rows."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        row = connection.execute(ALL_VISIBLE).fetchone()
        if row is not None and row[0]:
            return
        assert time.monotonic() < deadline_s, "a long transaction keeps the log from its readers"
        time.sleep(0.01)


def _as_given(row: Recorded) -> dict[str, Any]:
    return {
        "event_id": row.event_id,
        "command_id": row.command_id,
        "topic": row.topic,
        "shard": row.shard,
        "stream": row.stream,
        "version": row.version,
        "type": row.type,
        "schema": row.schema,
        "at": at_text(row.at_us),
        "payload": row.payload.decode(),
        "prev_hash": row.prev_hash.hex(),
        "hash": row.hash.hex(),
    }
