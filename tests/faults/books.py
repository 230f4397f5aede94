"""An auditor of the tests' own: reads the log, adds it up without the product's folds, compares.

Everything is asked of the log itself; `suanpan audit` is asked too, as a second opinion.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from backend.kit.postgres import connect, fetch_all
from schemas.event import LEDGER, Recorded
from schemas.ledger import (
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsCorrected,
    PointsGranted,
    PointsHeld,
    ReleaseReason,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import format_points
from schemas.prices import cost_of
from schemas.registry import decode
from schemas.usage import Basis, Usage
from tests.faults.load import Call, Ending
from tests.faults.roles import LEASE_S, ROOT
from tests.faults.site import PRICES, Account

LEDGER_ROWS = """
SELECT epoch, xid::text::bigint, seq, event_id, command_id, topic, shard::integer, stream, version,
    type, schema::integer, (extract(epoch FROM at) * 1000000)::bigint, payload, prev_hash, hash
FROM event_log WHERE topic = %(topic)s ORDER BY stream, version
"""
OPEN_LEASES = "SELECT request_id::text FROM leases"
BEGUN_LEASES = """
SELECT request_id::text FROM leases WHERE nullif(progress, '')::json ->> 'begun' = 'true'
"""
OUTCOME_TIMEOUT_S = LEASE_S + 20.0
COMMAND_TIMEOUT_S = 60.0


class Request:
    """What the log says of one request."""

    def __init__(self, account: str, held: PointsHeld) -> None:
        self.account = account
        self.model = held.model
        self.held_upt = held.amount_upt
        self.settled: list[HoldSettled] = []
        self.released: list[HoldReleased] = []
        self.late: list[UsageLate] = []
        self.settled_short_upt = 0

    @property
    def outcomes(self) -> int:
        return len(self.settled) + len(self.released)

    @property
    def charged_upt(self) -> int:
        return sum(e.amount_upt for e in (*self.settled, *self.late))

    @property
    def swept(self) -> bool:
        return any(e.swept for e in self.settled) or any(
            e.reason is ReleaseReason.SWEPT for e in self.released
        )

    @property
    def reported(self) -> Usage | None:
        """The provider's own numbers, where they were charged."""
        ends = (*self.late, *self.settled)
        return next((e.usage for e in ends if e.basis is Basis.REPORTED), None)

    def check_reported(self, request_id: str, said: dict[str, Any] | None) -> None:
        """The charge is the cost of what the provider said of this very request."""
        if self.reported is None:
            return
        assert said is not None, f"{request_id}: charged as reported, but nothing was reported"
        usage = Usage(input=said["prompt_tokens"], output=said["completion_tokens"])
        assert self.reported == usage, f"{request_id}: {self.reported} is not {usage}"
        due_upt = cost_of(PRICES[self.model], usage)
        late_short_upt = sum(e.shortfall_upt for e in self.late)
        booked_upt = self.charged_upt + self.settled_short_upt + late_short_upt
        counted_upt = sum(e.amount_upt + self.settled_short_upt for e in self.settled if e.swept)
        assert booked_upt == max(due_upt, counted_upt), f"{request_id}: {booked_upt} ≠ {due_upt}"


class Balance(msgspec.Struct):
    """Micro-points of one account, added up event by event."""

    version: int = 0
    granted_upt: int = 0
    charged_upt: int = 0
    held_upt: int = 0


class Books:
    """The whole log, added up."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.balances: dict[str, Balance] = {}
        self._held_upt: dict[str, int] = {}

    def take(self, row: Recorded) -> None:
        balance = self.balances.setdefault(row.stream, Balance())
        balance.version += 1
        assert row.version == balance.version, f"{row.stream} has a gap before {row.version}"
        self._apply(row.stream, balance, decode(row))
        available_upt = balance.granted_upt - balance.charged_upt - balance.held_upt
        assert available_upt >= 0, f"{row.stream} is below zero at version {row.version}"

    def _apply(self, stream: str, balance: Balance, event: object) -> None:
        match event:
            case PointsGranted(amount_upt=amount_upt) | PointsCorrected(amount_upt=amount_upt):
                balance.granted_upt += amount_upt
            case PointsHeld(request_id=request_id, amount_upt=amount_upt):
                assert request_id not in self.requests, f"{request_id} is held twice"
                self.requests[request_id] = Request(stream, event)
                self._held_upt[request_id] = amount_upt
                balance.held_upt += amount_upt
            case HoldExtended(request_id=request_id, amount_upt=amount_upt):
                self._held_upt[request_id] += amount_upt
                balance.held_upt += amount_upt
            case HoldSettled(request_id=request_id, amount_upt=amount_upt):
                self.requests[request_id].settled.append(event)
                balance.held_upt -= self._held_upt.pop(request_id)
                balance.charged_upt += amount_upt
            case HoldReleased(request_id=request_id):
                self.requests[request_id].released.append(event)
                balance.held_upt -= self._held_upt.pop(request_id)
            case ShortfallRecorded(request_id=request_id, amount_upt=amount_upt):
                self.requests[request_id].settled_short_upt += amount_upt
            case UsageLate(request_id=request_id, amount_upt=amount_upt):
                self.requests[request_id].late.append(event)
                balance.charged_upt += amount_upt
            case _:
                pass

    def check(
        self,
        accounts: Sequence[Account],
        calls: Iterable[Call],
        said: dict[str, dict[str, Any]],
    ) -> list[str]:
        """Every request has one outcome and its right charge; the sums are the balances.

        `said`: usage that the provider reported, by request id. Returns the requests that the
        provider completed and nobody was charged for as reported.
        """
        for request_id, request in self.requests.items():
            assert request.outcomes == 1, f"{request_id} has {request.outcomes} outcomes"
            assert len(request.late) <= 1, f"{request_id} is late twice"
            assert not request.late or request.swept, f"{request_id} is late without a sweep"
            request.check_reported(request_id, said.get(request_id))
        for account in accounts:
            balance = self.balances[account.stream]
            charged = [r for r in self.requests.values() if r.account == account.stream]
            assert balance.granted_upt == account.granted_upt
            assert balance.held_upt == 0, f"{account.stream} still holds {balance.held_upt}"
            assert balance.charged_upt == sum(r.charged_upt for r in charged)
        self._check_what_clients_saw(calls)
        return sorted(r for r in said if r in self.requests and not self.requests[r].reported)

    def _check_what_clients_saw(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if call.ending is not Ending.ANSWERED:
                continue
            request = self.requests.get(call.request_id)
            assert request is not None, f"answered without a hold: {call}"
            assert request.reported is not None, f"answered, but not charged as reported: {call}"
            assert format_points(request.charged_upt) == call.points, f"told another price: {call}"


async def read_books(database_url: str) -> Books:
    """Everything that is committed now, whatever the product's own readers may see of it."""
    books = Books()
    async with await connect(database_url, application="test") as connection:
        for row in await fetch_all(connection, LEDGER_ROWS, {"topic": LEDGER}):
            books.take(Recorded(*row))
    return books


async def check_states(database_url: str, books: Books) -> None:
    """What decisions are based on is what the log adds up to."""
    async with await connect(database_url, application="test") as connection:
        query = "SELECT stream, version, state FROM streams WHERE stream LIKE 'account:%%'"
        rows = await fetch_all(connection, query)
    for stream, version, state in rows:
        kept, balance = msgspec.json.decode(state), books.balances[stream]
        assert version == balance.version
        assert kept.get("issued_upt", 0) == balance.granted_upt
        assert kept.get("charged_upt", 0) == balance.charged_upt
        assert kept.get("held_upt", 0) == balance.held_upt


async def open_leases(database_url: str) -> set[str]:
    async with await connect(database_url, application="test") as connection:
        return {row[0] for row in await fetch_all(connection, OPEN_LEASES)}


async def until_ended(database_url: str, requests: set[str] | None = None) -> None:
    """Waits until these requests (None: all) have an outcome; at most a lease and some more."""
    async with (
        asyncio.timeout(OUTCOME_TIMEOUT_S),
        await connect(database_url, application="test") as connection,
    ):
        while True:
            waiting = {row[0] for row in await fetch_all(connection, OPEN_LEASES)}
            if not (waiting if requests is None else waiting & requests):
                return
            await asyncio.sleep(0.05)


async def until_begun(database_url: str, requests: set[str]) -> None:
    """Waits until renewed leases say of exactly these requests that their answers have begun."""
    async with (
        asyncio.timeout(OUTCOME_TIMEOUT_S),
        await connect(database_url, application="test") as connection,
    ):
        begun: set[str] = set()
        while begun != requests:
            await asyncio.sleep(0.05)
            begun = {row[0] for row in await fetch_all(connection, BEGUN_LEASES)}


async def command(environment: dict[str, str], *words: str) -> dict[str, Any]:
    """One command of the product with `--json`; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backend.cli",
        *words,
        "--json",
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(COMMAND_TIMEOUT_S):
        out, errors = await process.communicate()
    said = f"suanpan {' '.join(words)}: {out.decode()[-3000:]} {errors.decode()[-3000:]}"
    assert process.returncode == 0, said
    return json.loads(out)


async def check_audit(environment: dict[str, str]) -> None:
    """`suanpan audit` finds nothing."""
    report = await command(environment, "audit")
    assert report["ok"], report
