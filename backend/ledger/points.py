"""The ledger's door: opens, grants, holds, extends, settles, releases. Decisions are in
`decide`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import msgspec

from backend.journal.commands import (
    NO_BODY,
    AlreadyDone,
    Command,
    Decision,
    Landed,
    Refused,
    Standing,
)
from backend.journal.idempotency import command_id_of
from backend.journal.reader import find_command
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from backend.ledger.account import Account
from backend.ledger.admission import HoldAsked, decide_hold, group_of
from backend.ledger.decide import (
    SettleAsked,
    decide_extend,
    decide_late,
    decide_release,
    decide_settle,
    reach_upt,
)
from backend.ledger.refusals import (
    KeyQuotaReached,
    MissingPoints,
    NotForGroup,
    TooManyAtOnce,
)
from schemas.errors import (
    IdempotencyConflict,
    InsufficientPoints,
    KeyQuotaSpent,
    ModelNotFound,
    NotFound,
    RateLimited,
    SuanpanError,
)
from schemas.event import Recorded
from schemas.identity import Reset
from schemas.ids import RequestId, late_command_id, outcome_command_id
from schemas.ledger import (
    HoldExtended,
    HoldReleased,
    HoldSettled,
    PointsHeld,
    RefusalReason,
    ReleaseReason,
    RequestRefused,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.money import MicroPoints, format_points
from schemas.plans import NORMAL, PlanUse, Quota
from schemas.prices import Terms
from schemas.registry import decode

KEY_ATTEMPTS_MAX: Final = 32
HOLD_TIMEOUT_S: Final = 5.0
SETTLE_TIMEOUT_S: Final = 10.0

SweepDecision = Callable[[Account], Decision]


class Held(msgspec.Struct, frozen=True):
    """A hold that landed; `reach_upt`: the hold and all that may still be held beside it."""

    amount_upt: MicroPoints
    reach_upt: MicroPoints
    group: str
    """That the request belongs to: its price and its limits."""
    terms: Terms
    plan: PlanUse | None
    """A subscription pays."""
    quota: Quota | None
    """The key's own spending limit."""


class Charged(msgspec.Struct, frozen=True):
    """How a request ended: what was charged, and what could not be."""

    amount_upt: MicroPoints
    shortfall_upt: MicroPoints = MicroPoints(0)


class Points:
    """One per process. Every method that records raises Unavailable while Postgres does not
    answer.
    """

    def __init__(self, writer: Writer, pool: Pool) -> None:
        self._writer: Final = writer
        self._pool: Final = pool

    async def hold(
        self, account: str, asked: HoldAsked, command_id: UUID, body_hash: bytes = b""
    ) -> Held:
        """Lets a request in. Raises what `admission_refusal` says, and IdempotencyConflict for a
        used id.
        """

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            standing = standings[0]
            return decide_hold(standing.state, standing.version, asked, at_us)

        outcome = await self._writer.submit(
            Command(command_id, (account,), decide, body_hash), HOLD_TIMEOUT_S
        )
        match outcome:
            case Landed(events, _, states):
                return _held_of(asked, events, states)
            case Refused(reason):
                raise admission_refusal(reason)
            case AlreadyDone(earlier_hash, rows):
                raise await self._used_before(body_hash, earlier_hash, rows)

    async def extend(self, account: str, request_id: RequestId, wanted_upt: int) -> int:
        """Holds up to `wanted_upt` more; returns how much (0: nothing is left, or no such hold)."""

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            return decide_extend(standings[0].state, request_id, wanted_upt)

        command = Command(self._writer.new_id(), (account,), decide, urgent=True)
        outcome = await self._writer.submit(command, HOLD_TIMEOUT_S)
        if not isinstance(outcome, Landed):
            return 0
        return sum(e.amount_upt for e in outcome.events if isinstance(e, HoldExtended))

    async def settle(self, account: str, asked: SettleAsked) -> Charged:
        """Ends a request with its exact cost, once; after a sweep records the usage as late."""

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            return decide_settle(standings[0].state, asked)

        command = Command(outcome_command_id(asked.request_id), (account,), decide, urgent=True)
        outcome = await self._writer.submit(command, SETTLE_TIMEOUT_S)
        if isinstance(outcome, Landed):
            return _charged_of(outcome.events)
        return await self._after_the_end(account, asked)

    async def release(
        self, account: str, request_id: RequestId, reason: ReleaseReason, served: Served
    ) -> None:
        """Ends a request without a charge; does nothing where it has an outcome already."""

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            return decide_release(standings[0].state, request_id, reason, served)

        command = Command(outcome_command_id(request_id), (account,), decide, urgent=True)
        await self._writer.submit(command, SETTLE_TIMEOUT_S)

    async def sweep(self, account: str, request_id: RequestId, end: SweepDecision) -> bool:
        """Ends a request whose lease ran out; False where someone else was faster or still
        lives.
        """

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            return end(account_state(standings[0].state))

        command = Command(
            outcome_command_id(request_id), (account,), decide, urgent=True, tries_once=True
        )
        return isinstance(await self._writer.submit(command, SETTLE_TIMEOUT_S), Landed)

    async def free_command_id(self, principal: str, route: str, key: str) -> UUID:
        """The command id of an Idempotency-Key: the first whose request was not refused or
        released.

        A key that is in use gives the used id, so that the hold finds its twin.
        """
        for attempt in range(KEY_ATTEMPTS_MAX):
            command_id = command_id_of(principal, f"{route} {attempt}", key)
            async with self._pool.connection() as connection:
                found = await find_command(connection, command_id)
            if found is None or not await self._is_free(found[1]):
                return command_id
        raise IdempotencyConflict("This Idempotency-Key failed too often; use a new key.")

    async def _is_free(self, rows: list[Recorded]) -> bool:
        if not rows:
            return False  # long ago: its events have been exported and detached
        first = decode(rows[0])
        if isinstance(first, RequestRefused):
            return True
        if not isinstance(first, PointsHeld):
            return False
        return any(
            isinstance(decode(row), HoldReleased) for row in await self.outcome_of(first.request_id)
        )

    async def outcome_of(self, request_id: RequestId) -> tuple[Recorded, ...]:
        """The rows that ended a request; empty while it is in flight or was never let in."""
        return await self._rows_of(outcome_command_id(request_id))

    async def _rows_of(self, command_id: UUID) -> tuple[Recorded, ...]:
        async with self._pool.connection() as connection:
            found = await find_command(connection, command_id)
        return () if found is None else tuple(found[1])

    async def _after_the_end(self, account: str, asked: SettleAsked) -> Charged:
        """The request has an outcome: ours from an attempt before, or a sweep's."""
        rows = await self.outcome_of(asked.request_id)
        for row in rows:
            match decode(row):
                case HoldSettled(swept=True) | HoldReleased(reason=ReleaseReason.SWEPT):
                    by_sweep = _charged_of(_decoded(rows))
                    return await self._late(account, asked, row.event_id, by_sweep)
                case _:
                    continue
        return _charged_of(_decoded(rows))

    async def _late(
        self, account: str, asked: SettleAsked, sweep_event_id: UUID, by_sweep: Charged
    ) -> Charged:
        accounted_upt = by_sweep.amount_upt + by_sweep.shortfall_upt

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            state, version = standings[0].state, standings[0].version
            return decide_late(state, version, asked, sweep_event_id, accounted_upt)

        command = Command(late_command_id(asked.request_id), (account,), decide, urgent=True)
        match await self._writer.submit(command, SETTLE_TIMEOUT_S):
            case Landed(events):
                late = _charged_of(events)
            case AlreadyDone(_, rows):
                late = _charged_of(_decoded(rows))
            case Refused():
                late = Charged(MicroPoints(0))
        return Charged(
            MicroPoints(by_sweep.amount_upt + late.amount_upt),
            MicroPoints(by_sweep.shortfall_upt + late.shortfall_upt),
        )

    async def _used_before(
        self, body_hash: bytes, earlier_hash: bytes, rows: tuple[Recorded, ...]
    ) -> Exception:
        """What a repeated Idempotency-Key is told: 409 with the request id and its charge."""
        # A log that was restored from Kafka has lost the hash of the body.
        if earlier_hash != NO_BODY and body_hash != earlier_hash:
            return IdempotencyConflict(
                "This Idempotency-Key was used before with another body; use a new key."
            )
        first = decode(rows[0]) if rows else None
        if not isinstance(first, PointsHeld):
            return IdempotencyConflict("This Idempotency-Key was used before; use a new key.")
        ended = await self.outcome_of(first.request_id)
        if not ended:
            return IdempotencyConflict(
                f"Request {first.request_id} with this Idempotency-Key is still in flight."
            )
        late = await self._rows_of(late_command_id(first.request_id))
        charged = _charged_of(_decoded((*ended, *late)))
        return IdempotencyConflict(
            f"Request {first.request_id} with this Idempotency-Key was answered before and "
            f"charged {format_points(charged.amount_upt)} points."
        )


def insufficient(missing_upt: int) -> InsufficientPoints:
    """402 for people: how many points are missing."""
    return InsufficientPoints(
        f"You have too few points for this request: {format_points(missing_upt)} more are needed."
    )


def admission_refusal(reason: object) -> SuanpanError:
    """What a caller is told who was not let in."""
    match reason:
        case MissingPoints(missing_upt):
            return insufficient(missing_upt)
        case KeyQuotaReached(missing_upt, reset):
            return _quota_spent(missing_upt, reset)
        case TooManyAtOnce(scope, limit):
            return RateLimited(
                f"Limit of {limit} requests at once for this {scope} reached; wait for one to end.",
                retry_after_s=1,
                limit=limit,
            )
        case NotForGroup(group):
            return ModelNotFound(f"The group {group!r} may not use this model.")
        case _:
            return NotFound("This key's account does not exist.")


def _quota_spent(missing_upt: int, reset: Reset) -> KeyQuotaSpent:
    again = "" if reset is Reset.NEVER else f" It begins anew {reset.value}, in UTC."
    return KeyQuotaSpent(
        f"This key's own quota is spent: {format_points(missing_upt)} more points are needed."
        f"{again}"
    )


def account_state(standing_state: object) -> Account:
    """Narrows a state that came from an `account:` stream."""
    assert isinstance(standing_state, Account)
    return standing_state


def _held_of(asked: HoldAsked, events: tuple[object, ...], states: tuple[object, ...]) -> Held:
    for event in events:
        if isinstance(event, RequestRefused):
            if event.reason is RefusalReason.KEY_QUOTA:
                raise _quota_spent(event.missing_upt, asked.key.reset)
            raise insufficient(event.missing_upt)
        if isinstance(event, PointsHeld):
            group, reach = asked.key.group or NORMAL, event.amount_upt
            if states:
                state = account_state(states[0])
                group = group_of(state, asked.key, event.terms.at_us)
                hold = state.holds.get(event.request_id)
                more_upt = 0 if hold is None else reach_upt(state, hold)
                reach = MicroPoints(event.amount_upt + more_upt)
            return Held(event.amount_upt, reach, group, event.terms, event.plan, event.quota)
    raise AssertionError("a hold lands as PointsHeld or RequestRefused")


def _decoded(rows: Sequence[Recorded]) -> tuple[object, ...]:
    return tuple(decode(row) for row in rows)


def _charged_of(events: tuple[object, ...]) -> Charged:
    amount_upt = shortfall_upt = 0
    for event in events:
        if isinstance(event, HoldSettled):
            amount_upt += event.amount_upt
        elif isinstance(event, UsageLate):
            amount_upt += event.amount_upt
            shortfall_upt += event.shortfall_upt
        elif isinstance(event, ShortfallRecorded):
            shortfall_upt += event.amount_upt
    return Charged(MicroPoints(amount_upt), MicroPoints(shortfall_upt))
