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
from backend.ledger.account import ACCOUNT, Account
from schemas.event import Recorded, shard_of, topic_of
from schemas.ids import uuid7
from schemas.ledger import (
    AccountOpened,
    GrantKind,
    HoldExtended,
    HoldReleased,
    HoldSettled,
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
from schemas.prices import PriceRef
from schemas.registry import encode
from schemas.usage import Basis, Usage

START_US: Final = 1_750_000_000_000_000
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

    def hold(self, stream: str, amount_upt: int = 5_000, model: str = "gpt", key: int = 1) -> str:
        request_id = str(self.id())
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
        event = HoldSettled(request_id, amount_upt, usage, basis, PriceRef(model, 3), served, swept)
        return self.add(stream, event)

    def release(self, stream: str, request_id: str, reason: ReleaseReason) -> Recorded:
        served = Served(None, None, 502, 300, None, 2, "upstream_error")
        return self.add(stream, HoldReleased(request_id, reason, served))

    def refuse(self, stream: str, model: str = "gpt") -> str:
        request_id = str(self.id())
        self.add(
            stream,
            RequestRefused(
                request_id,
                RefusalReason.INSUFFICIENT_POINTS,
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
        event = UsageLate(
            request_id, sweep.event_id, amount_upt, 9, usage, Basis.REPORTED, price, served
        )
        return self.add(stream, event)

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
        act = self.random.randrange(12)
        if act == 0:
            self.refuse(stream)
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
