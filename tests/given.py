"""What tests of the ledger are given: prices, requests, commands and histories, small and plain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import msgspec

from backend.journal.batch import Batch, Head
from backend.journal.chain import genesis_hash
from backend.journal.commands import Accept, Command, Decision, Refuse, Standing
from backend.journal.fold import Folds
from backend.kit.clock import SystemClock, SystemRandomness
from backend.ledger.account import ACCOUNT, Account
from backend.ledger.admission import HoldAsked, decide_hold
from backend.ledger.decide import SettleAsked, decide_grant, decide_open, decide_settle
from backend.ledger.points import Charged
from schemas.ids import KeyId, PersonId, RequestId, account_stream, outcome_command_id, uuid7
from schemas.ledger import AccountOpened, GrantKind, PointsGranted, PointsHeld, Served
from schemas.money import MicroPoints
from schemas.prices import PerCall, PerToken, Price, PriceRef
from schemas.relay import KeyTerms
from schemas.usage import Basis, Usage

POINT = 1_000_000
"""Micro-points."""
A_POINT_A_CALL = PerCall(1_000_000_000)
PER_TOKEN = PerToken(input_npt=100_000, output_npt=200_000)
"""0.1 and 0.2 points per 1,000 tokens: 100 and 200 micro-points a token."""
MODEL = "model"
REF = PriceRef(MODEL, 1)
SITE = UUID("00000000-0000-4000-8000-000000000001")
AT_US = 1_700_000_000_000_000
CLOCK = SystemClock()
RANDOMNESS = SystemRandomness()
FOLDS = Folds([ACCOUNT])


def new_id() -> UUID:
    return uuid7(CLOCK.now_us(), RANDOMNESS.bits(74))


def new_request() -> RequestId:
    return RequestId(str(new_id()))


def hold_asked(request_id: str, price: Price = A_POINT_A_CALL, **more: Any) -> HoldAsked:
    asked = HoldAsked(
        request_id=RequestId(request_id),
        purpose="relay.chat",
        key=KeyTerms(KeyId(1)),
        model=MODEL,
        price=price,
        price_ref=REF,
        streamed=False,
        input_bound=100,
        output_limit=None,
        choices=1,
        channels=(),
        lease_s=30,
    )
    return msgspec.structs.replace(asked, **more)


def settle_asked(
    request_id: str, price: Price = A_POINT_A_CALL, usage: Usage | None = None
) -> SettleAsked:
    return SettleAsked(
        request_id=RequestId(request_id),
        usage=usage or Usage(input=10, output=10),
        basis=Basis.REPORTED,
        price=price,
        price_ref=REF,
        served=Served(status=200),
    )


def charged(amount_upt: int, shortfall_upt: int = 0) -> Charged:
    return Charged(MicroPoints(amount_upt), MicroPoints(shortfall_upt))


def held_event(request_id: str, amount_upt: int) -> PointsHeld:
    return PointsHeld(
        request_id=RequestId(request_id),
        amount_upt=MicroPoints(amount_upt),
        purpose="relay.chat",
        key=KeyId(1),
        model=MODEL,
        price=REF,
        streamed=False,
        input_bound=100,
        output_bound=4_096,
    )


def folded(events: Iterable[Any]) -> Account:
    """The account after `events`, the first of which has version 1."""
    state = ACCOUNT.empty
    for version, event in enumerate(events, 1):
        state = ACCOUNT.apply(state, event, version, AT_US)
    return state


def with_upt(amount_upt: int, *more: Any) -> Account:
    """An open account that was granted so much, and what happened since."""
    grants = [granted_event(amount_upt)] if amount_upt else []
    return folded([AccountOpened(PersonId(1)), *grants, *more])


def granted_event(amount_upt: int) -> PointsGranted:
    return PointsGranted(MicroPoints(amount_upt), GrantKind.OPERATOR, "cli")


def on_first(
    streams: tuple[str, ...],
    decide: Callable[[Account, int, int], Decision],
    command_id: UUID | None = None,
    **more: Any,
) -> Command:
    """A command that decides by (state, version, at) of its first stream."""

    def decided(standings: tuple[Standing, ...], at_us: int) -> Decision:
        return decide(standings[0].state, standings[0].version, at_us)

    return Command(command_id or new_id(), streams, decided, **more)


def opening(account: int) -> Command:
    return on_first(
        (account_stream(PersonId(account)),),
        lambda state, version, _: decide_open(state, version, PersonId(account)),
    )


def granting(account: int, amount_upt: int, command_id: UUID | None = None) -> Command:
    return on_first(
        (account_stream(PersonId(account)),),
        lambda state, version, _: decide_grant(
            state, version, MicroPoints(amount_upt), GrantKind.OPERATOR, "cli"
        ),
        command_id,
    )


def holding(account: int, asked: HoldAsked, command_id: UUID | None = None) -> Command:
    return on_first(
        (account_stream(PersonId(account)),),
        lambda state, version, at_us: decide_hold(state, version, asked, at_us),
        command_id,
    )


def settling(account: int, asked: SettleAsked) -> Command:
    return on_first(
        (account_stream(PersonId(account)),),
        lambda state, _, __: decide_settle(state, asked),
        outcome_command_id(asked.request_id),
        urgent=True,
    )


def moving(giver: int, taker: int, amount_upt: int, command_id: UUID | None = None) -> Command:
    """Two streams in one unit, and nothing of it where the giver has too little."""
    streams = (account_stream(PersonId(giver)), account_stream(PersonId(taker)))

    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        request = new_request()
        left = decide_hold(
            standings[0].state,
            standings[0].version,
            hold_asked(request, PerCall(amount_upt * 1_000)),
            at_us,
        )
        if isinstance(left, Refuse) or not isinstance(left.events[0][1], PointsHeld):
            return Refuse("too little")
        return Accept((*left.events, (1, granted_event(amount_upt))), left.leases)

    return Command(command_id or new_id(), streams, decide)


def empty_heads(*streams: str) -> dict[str, Head]:
    return {stream: Head(0, genesis_hash(SITE, stream), ACCOUNT.empty) for stream in streams}


def batch_on(heads: dict[str, Head], at_us: int = AT_US) -> Batch:
    """A batch whose event ids count up from 1."""
    numbers = iter(range(1, 100_000))
    return Batch(FOLDS, heads, at_us, lambda: UUID(int=next(numbers)))
