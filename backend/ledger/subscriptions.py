"""Subscriptions' door: what one costs, and buying, renewing or changing it with points.

Decisions are in `decide_plans`; what a level offers comes in from the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from backend.journal.commands import Command, Decision, Landed, Refused, Standing
from backend.journal.fold import Folds
from backend.journal.idempotency import length_prefixed
from backend.journal.reader import read_stream
from backend.journal.repeatable import Happened, once, repeatable_id
from backend.journal.view import load_states
from backend.journal.writer import Writer
from backend.kit.clock import Clock
from backend.kit.postgres import Pool, fetch_all, fetch_one
from backend.kit.secrets import SiteSecret
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.decide_plans import decide_expire, decide_subscribe
from backend.ledger.points import account_state
from backend.ledger.refusals import (
    JustBought,
    MissingPoints,
    NothingExpired,
    PlanNotOffered,
    TooFarAhead,
)
from backend.ledger.subscription import AHEAD_MONTHS_MAX, Quote, quote
from schemas.errors import BadRequest, Conflict, InsufficientPoints, NotFound, SuanpanError
from schemas.event import Recorded
from schemas.ids import PersonId, StreamName, account_stream
from schemas.ledger import PlanBought, PlanChanged, PlanRenewed
from schemas.money import MicroPoints, format_points
from schemas.plans import TERMS_MONTHS, OfferedPlan
from schemas.registry import decode

ROUTE: Final = "subscribe"
LAST_PURCHASE: Final = """
SELECT version FROM event_log
WHERE stream = %(stream)s AND type IN ('PlanBought', 'PlanRenewed', 'PlanChanged')
ORDER BY version DESC LIMIT 1
"""
LAPSED: Final = """
SELECT stream, plan_until_us FROM read.balance
WHERE plan_until_us <= %(now_us)s AND (plan_until_us, stream) > (%(after_us)s, %(after)s)
ORDER BY plan_until_us, stream LIMIT %(count_max)s
"""

Kind = Literal["bought", "renewed", "changed"]
Purchase = PlanBought | PlanRenewed | PlanChanged
_FOLDS: Final = Folds([ACCOUNT])


class Subscribed(msgspec.Struct, frozen=True):
    """A purchase in the log: due = price − credit. `available_upt` is what the account has now."""

    kind: Kind
    level: int
    months: int
    price_upt: MicroPoints
    credit_upt: MicroPoints
    due_upt: int
    """Below zero: points came back."""
    until_us: int
    available_upt: int
    stream: StreamName
    version: int
    repeated: bool


class Quoted(msgspec.Struct, frozen=True):
    """What a purchase would come to now, and what the account has for it."""

    kind: Kind
    quote: Quote
    available_upt: int

    @property
    def missing_upt(self) -> int:
        return max(0, self.quote.due_upt - self.available_upt)


class Lapsed(msgspec.Struct, frozen=True):
    """An account whose subscription's time is over, as the read table has it."""

    account: StreamName
    until_us: int


class Subscriptions:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(self, writer: Writer, pool: Pool, secret: SiteSecret, clock: Clock) -> None:
        self._writer: Final = writer
        self._pool: Final = pool
        self._secret: Final = secret
        self._clock: Final = clock

    async def quote(self, person: PersonId, offered: OfferedPlan, months: int) -> Quoted:
        """What `subscribe` would charge now. Raises BadRequest, NotFound."""
        if not offered.plan.enabled or months not in TERMS_MONTHS:
            raise _refusal(PlanNotOffered())
        now_us = self._clock.now_us()
        state = await self._account(account_stream(person))
        current = state.subscription
        quoted = quote(current, offered, months, now_us)
        kind: Kind = "changed"
        if current is None or not current.active(now_us):
            kind = "bought"
        elif current.level == offered.ref.level:
            kind = "renewed"
        return Quoted(kind, quoted, state.available_upt)

    async def subscribe(
        self,
        person: PersonId,
        offered: OfferedPlan,
        months: int,
        *,
        actor: str,
        idempotency_key: str | None = None,
    ) -> Subscribed:
        """Buys, renews or changes, whichever the account needs.

        Without a key the same purchase within seconds is one that was clicked twice, and answers as
        the first. Raises InsufficientPoints, BadRequest, NotFound; IdempotencyConflict.
        """
        account = account_stream(person)

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            state, version = account_state(standings[0].state), standings[0].version
            return decide_subscribe(
                state, version, offered, months, at_us, deliberate=idempotency_key is not None
            )

        wanted = (account, offered.ref.level, months)
        command = Command(
            repeatable_id(self._writer, actor, ROUTE, idempotency_key),
            (account,),
            decide,
            self._secret.hmac("subscribe body", length_prefixed(*map(str, wanted))),
        )
        done = await once(
            self._writer,
            self._pool,
            command,
            "subscription",
            lambda rows: _agrees(rows, account, offered, months),
        )
        match done:
            case Happened(rows, repeated):
                row, purchase = _purchase(rows)
            case Refused(JustBought()):
                (row, purchase), repeated = await self._last_purchase(account), True
                if not _agrees([row], account, offered, months):
                    raise Conflict("The subscription was changed a moment ago; look and try again.")
            case Refused(reason):
                raise _refusal(reason)
        available_upt = (await self._account(account)).available_upt
        return _subscribed(row, purchase, available_upt, repeated=repeated)

    async def list_lapsed(self, now_us: int, after: Lapsed | None, count_max: int) -> list[Lapsed]:
        """Accounts by the read table, which may be behind: `expire` decides."""
        given = {
            "now_us": now_us,
            "after_us": after.until_us if after else 0,
            "after": after.account if after else "",
            "count_max": count_max,
        }
        async with self._pool.connection() as connection:
            rows = await fetch_all(connection, LAPSED, given)
        return [Lapsed(StreamName(stream), until_us) for stream, until_us in rows]

    async def expire(self, account: StreamName) -> bool:
        """Records the end of a subscription whose time is over; False where there is none."""

        def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
            return decide_expire(account_state(standings[0].state), at_us)

        command = Command(self._writer.new_id(), (account,), decide)
        outcome = await self._writer.submit(command)
        assert isinstance(outcome, Landed) or outcome == Refused(NothingExpired())
        return isinstance(outcome, Landed)

    async def _account(self, account: StreamName) -> Account:
        async with self._pool.connection() as connection:
            states = await load_states(connection, _FOLDS, (account,))
        if account not in states:
            raise NotFound("This account does not exist.")
        return account_state(states[account][1])

    async def _last_purchase(self, account: StreamName) -> tuple[Recorded, Purchase]:
        async with self._pool.connection() as connection:
            found = await fetch_one(connection, LAST_PURCHASE, {"stream": account})
            assert found is not None, "somebody has just bought"
            return _purchase(await read_stream(connection, account, found[0], 1))


def _subscribed(
    row: Recorded, purchase: Purchase, available_upt: int, *, repeated: bool
) -> Subscribed:
    credit_upt = MicroPoints(0)
    kind: Kind = "bought"
    if isinstance(purchase, PlanRenewed):
        kind = "renewed"
    elif isinstance(purchase, PlanChanged):
        kind, credit_upt = "changed", purchase.credit_upt
    return Subscribed(
        kind=kind,
        level=purchase.plan.level,
        months=purchase.months,
        price_upt=purchase.segment.paid_upt,
        credit_upt=credit_upt,
        due_upt=purchase.segment.paid_upt - credit_upt,
        until_us=purchase.segment.until_us,
        available_upt=available_upt,
        stream=StreamName(row.stream),
        version=row.version,
        repeated=repeated,
    )


def _purchase(rows: Sequence[Recorded]) -> tuple[Recorded, Purchase]:
    for row in rows:
        event = decode(row)
        if isinstance(event, PlanBought | PlanRenewed | PlanChanged):
            return row, event
    raise AssertionError("a purchase lands as PlanBought, PlanRenewed or PlanChanged")


def _agrees(rows: Sequence[Recorded], account: str, offered: OfferedPlan, months: int) -> bool:
    row, purchase = _purchase(rows)
    before = (row.stream, purchase.plan.level, purchase.months)
    return before == (account, offered.ref.level, months)


def _refusal(reason: object) -> SuanpanError:
    match reason:
        case MissingPoints(missing_upt):
            return InsufficientPoints(
                "You have too few points for this subscription: "
                f"{format_points(missing_upt)} more are needed."
            )
        case PlanNotOffered():
            terms = ", ".join(map(str, TERMS_MONTHS))
            return BadRequest(f"This level is not offered, or not for so long: {terms} months.")
        case TooFarAhead():
            return BadRequest(
                f"A subscription reaches at most {AHEAD_MONTHS_MAX // 12} years ahead."
            )
        case _:
            return NotFound("This account does not exist.")
