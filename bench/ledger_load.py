"""Fills the log without HTTP: holds and settles through the writer, as the relay records them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from backend.journal.commands import Command, Decision, Landed, Outcome, Standing
from backend.journal.writer import Writer
from backend.ledger.admission import HoldAsked, decide_hold
from backend.ledger.decide import SettleAsked, decide_settle
from bench.children import BenchmarkProblem
from schemas.ids import ChannelId, KeyId, RequestId, outcome_command_id
from schemas.ledger import Served
from schemas.prices import PerToken, PriceRef
from schemas.relay import KeyTerms
from schemas.usage import Basis, Usage

PRICE: Final = PerToken(input_npt=1_000, output_npt=2_000)
PRICE_REF: Final = PriceRef("bench-chat", 1)
USAGE: Final = Usage(input=180, output=150)
SERVED: Final = Served(ChannelId(1), "bench-chat", 200, 3, None, 1)


class Filled(msgspec.Struct, frozen=True):
    """What the writer recorded, and at which cost to its process."""

    requests: int
    seconds: float
    cpu_s: float
    appends: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


async def fill(writer: Writer, accounts: Sequence[str], requests: int, parallel: int) -> Filled:
    """`requests` held and settled requests, `parallel` at a time. Raises BenchmarkProblem."""
    started_s, cpu_s, appends = time.perf_counter(), time.process_time(), writer.appends
    left = iter(range(requests))

    async def one_after_another() -> None:
        for number in left:
            await _request(writer, accounts[number % len(accounts)])

    await asyncio.gather(*(one_after_another() for _ in range(parallel)))
    return Filled(
        requests,
        time.perf_counter() - started_s,
        time.process_time() - cpu_s,
        writer.appends - appends,
    )


async def _request(writer: Writer, account: str) -> None:
    await settle_call(writer, account, await hold_call(writer, account))


async def hold_call(writer: Writer, account: str) -> RequestId:
    """Lets one request in. Raises BenchmarkProblem."""
    command_id = writer.new_id()
    request_id = RequestId(str(command_id))
    asked = HoldAsked(
        request_id, "relay.chat", KeyTerms(KeyId(1)), PRICE_REF.model, PRICE, PRICE_REF,
        streamed=False, input_bound=400, output_limit=256, choices=1,
        channels=(ChannelId(1),), lease_s=30,
    )  # fmt: skip

    def hold(standings: tuple[Standing, ...], at_us: int) -> Decision:
        return decide_hold(standings[0].state, standings[0].version, asked, at_us)

    _landed(await writer.submit(Command(command_id, (account,), hold)))
    return request_id


async def settle_call(writer: Writer, account: str, request_id: RequestId) -> None:
    """Ends it with what it cost. Raises BenchmarkProblem."""
    asked = SettleAsked(request_id, USAGE, Basis.REPORTED, PRICE, PRICE_REF, SERVED)

    def settle(standings: tuple[Standing, ...], at_us: int) -> Decision:
        return decide_settle(standings[0].state, asked)

    outcome_id = outcome_command_id(request_id)
    _landed(await writer.submit(Command(outcome_id, (account,), settle, urgent=True)))


def _landed(outcome: Outcome) -> None:
    if not isinstance(outcome, Landed):
        raise BenchmarkProblem(f"the ledger refused: {outcome}")
