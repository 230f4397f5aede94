"""An auditor of the tests' own: reads the log, adds it up without the product's folds, compares.

Everything is asked of the log itself; `suanpan audit` is asked too, as a second opinion. What is
wrong is collected, each with the invariant it breaks (backend/ledger/README.md).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
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
from schemas.money import MicroPoints, format_points
from schemas.prices import cost_of
from schemas.registry import decode
from schemas.usage import Basis, Usage
from tests.faults.load import Call, Ending, Returned
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

    def __init__(self, account: str, held: PointsHeld, at_us: int = 0) -> None:
        self.account = account
        self.held_at_us = at_us
        self.ended_at_us = at_us
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

    @property
    def attempts(self) -> int:
        """How often a provider was asked, as the outcome tells."""
        return max((end.served.attempts for end in (*self.settled, *self.released)), default=0)

    @property
    def troubled(self) -> bool:
        """Its end says that something went wrong on the way."""
        ends = (*self.settled, *self.released)
        return self.swept or any(end.served.error is not None for end in ends)

    def wrong_charge(self, said: dict[str, Any] | None) -> str | None:
        """What is wrong, where the charge is not the cost of what the provider said of this."""
        if self.reported is None:
            return None
        if said is None:
            return "charged as reported, but nothing was reported"
        usage = Usage(input=said["prompt_tokens"], output=said["completion_tokens"])
        if self.reported != usage:
            return f"{self.reported} is not {usage}"
        due_upt = cost_of(PRICES[self.model], usage)
        late_short_upt = sum(e.shortfall_upt for e in self.late)
        booked_upt = self.charged_upt + self.settled_short_upt + late_short_upt
        counted_upt = sum(e.amount_upt + self.settled_short_upt for e in self.settled if e.swept)
        if booked_upt != max(due_upt, counted_upt):
            return f"{booked_upt} ≠ {due_upt}"
        return None


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
        self.violations: list[str] = []
        self._held_upt: dict[str, int] = {}

    def take(self, row: Recorded) -> None:
        balance = self.balances.setdefault(row.stream, Balance())
        balance.version += 1
        if row.version != balance.version:
            self.violations.append(f"I7: {row.stream} has a gap before {row.version}")
            balance.version = row.version
        self._apply(row, balance, decode(row))
        available_upt = balance.granted_upt - balance.charged_upt - balance.held_upt
        if available_upt < 0:
            self.violations.append(f"I2: {row.stream} is below zero at version {row.version}")

    def _apply(self, row: Recorded, balance: Balance, event: object) -> None:
        match event:
            case PointsGranted(amount_upt=amount_upt) | PointsCorrected(amount_upt=amount_upt):
                balance.granted_upt += amount_upt
            case PointsHeld(request_id=request_id, amount_upt=amount_upt):
                if request_id in self.requests:
                    self.violations.append(f"I3: {request_id} is held twice")
                self.requests[request_id] = Request(row.stream, event, row.at_us)
                self._held_upt[request_id] = amount_upt
                balance.held_upt += amount_upt
            case HoldExtended(request_id=request_id, amount_upt=amount_upt):
                self._held_upt[request_id] += amount_upt
                balance.held_upt += amount_upt
            case HoldSettled(request_id=request_id, amount_upt=amount_upt):
                self.requests[request_id].settled.append(event)
                balance.charged_upt += amount_upt
                self._ended(row, balance, request_id, amount_upt)
            case HoldReleased(request_id=request_id):
                self.requests[request_id].released.append(event)
                self._ended(row, balance, request_id, 0)
            case ShortfallRecorded(request_id=request_id, amount_upt=amount_upt):
                self.requests[request_id].settled_short_upt += amount_upt
            case UsageLate(request_id=request_id, amount_upt=amount_upt):
                self.requests[request_id].late.append(event)
                balance.charged_upt += amount_upt
            case _:
                pass

    def _ended(self, row: Recorded, balance: Balance, request_id: str, charged_upt: int) -> None:
        held_upt = self._held_upt.pop(request_id, 0)
        balance.held_upt -= held_upt
        self.requests[request_id].ended_at_us = row.at_us
        if not 0 <= charged_upt <= held_upt:
            self.violations.append(f"I4: {request_id} settled {charged_upt} of {held_upt}")

    def hold_age_s(self, streams: Collection[str]) -> float:
        """The longest time from a hold to its outcome, by the clocks of those who wrote them."""
        ages_us = (
            request.ended_at_us - request.held_at_us
            for request in self.requests.values()
            if request.account in streams
        )
        return max(ages_us, default=0) / 1_000_000

    def check(
        self,
        accounts: Sequence[Account],
        calls: Iterable[Call],
        said: dict[str, dict[str, Any]],
    ) -> list[str]:
        """Every request has one outcome and its right charge; the sums are the balances.

        `said`: usage that the provider reported, by request id. Returns the requests that the
        provider completed and nobody was charged for as reported. Raises AssertionError with all
        violations.
        """
        wrong = self.examine(accounts, calls, said)
        assert not wrong, "\n".join(wrong)
        return sorted(r for r in said if r in self.requests and not self.requests[r].reported)

    def examine(
        self,
        accounts: Sequence[Account],
        calls: Iterable[Call],
        said: dict[str, dict[str, Any]],
    ) -> list[str]:
        """The violations, those met while reading included."""
        wrong = list(self.violations)
        for request_id, request in self.requests.items():
            wrong += self._wrong_request(request_id, request, said)
        for account in accounts:
            wrong += self._wrong_account(account)
        for call in calls:
            wrong += self._wrong_answer(call)
        return wrong

    def _wrong_request(
        self, request_id: str, request: Request, said: dict[str, dict[str, Any]]
    ) -> Iterator[str]:
        if request.outcomes != 1:
            yield f"I3: {request_id} has {request.outcomes} outcomes"
        if len(request.late) > 1:
            yield f"I3: {request_id} is late twice"
        if request.late and not request.swept:
            yield f"I3: {request_id} is late without a sweep"
        fault = request.wrong_charge(said.get(request_id))
        if fault is not None:
            yield f"I13: {request_id}: {fault}"
        if request_id in said and request.reported is None and not request.troubled:
            yield f"I12: {request_id} was reported, and charged otherwise without a reason"

    def _wrong_account(self, account: Account) -> Iterator[str]:
        balance = self.balances[account.stream]
        charged = [r for r in self.requests.values() if r.account == account.stream]
        if balance.granted_upt != account.granted_upt:
            yield f"I1: {account.stream} has {balance.granted_upt}, not {account.granted_upt}"
        if balance.held_upt != 0:
            yield f"I12: {account.stream} still holds {balance.held_upt}"
        if balance.charged_upt != sum(r.charged_upt for r in charged):
            yield f"I1: {account.stream} was charged otherwise than its requests"

    def _wrong_answer(self, call: Call) -> Iterator[str]:
        """What a client was told is what the log says."""
        request = self.requests.get(call.request_id)
        if call.returned is Returned.FAIL and request is not None and request.charged_upt:
            yield f"I12: refused, and charged {request.charged_upt}: {call}"
        if call.ending is not Ending.ANSWERED:
            return
        if request is None:
            yield f"I12: answered without a hold: {call}"
        elif request.reported is None:
            yield f"I13: answered, but not charged as reported: {call}"
        elif format_points(MicroPoints(request.charged_upt)) != call.points:
            yield f"I13: told another price: {call}"


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
