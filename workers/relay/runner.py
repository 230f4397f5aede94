"""Runs relay calls: hold, try channels, pass the answer on, settle before the last byte leaves.

Failover only before the first byte of an answer. Settlement table: `docs/billing.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from backend.kit.clock import Clock
from backend.kit.outbound import TransportError
from backend.kit.tokenizer import Tokenizer
from backend.ledger.admission import OUTPUT_HELD_MAX, HoldAsked
from backend.ledger.leases import LeaseKeeper
from backend.ledger.points import Points, insufficient
from schemas.chat import UpstreamProblem
from schemas.errors import ModelNotFound
from schemas.ids import ChannelId
from schemas.ledger import ReleaseReason
from schemas.money import format_points
from schemas.relay import ClientStream, RelayCall, WholeAnswer
from workers.providers.openai_answer import parse_answer
from workers.relay.ending import Ending
from workers.relay.ports import Offer, OfferedChannel, Offers
from workers.relay.run import Run
from workers.relay.streaming import Streaming
from workers.relay.upstream import (
    AttemptFailed,
    Upstreams,
    answered,
    problem_of_transport,
    release_reason,
)
from workers.routing import Candidate, Cooldowns, plan_channels

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
ATTEMPTS_MAX: Final = 5
OUTPUT_CEILING: Final = 262_144
"""No model writes more in one answer: above it, what an account can pay for is no limit."""
PURPOSE: Final = "relay.chat"


class RelayRunner:
    """One per process; implements `schemas.relay.ChatRelay`."""

    def __init__(
        self,
        points: Points,
        leases: LeaseKeeper,
        offers: Offers,
        upstreams: Upstreams,
        cooldowns: Cooldowns,
        ending: Ending,
        streaming: Streaming,
        tokenizer: Tokenizer,
        clock: Clock,
        draw: Callable[[], float],
    ) -> None:
        self._points: Final = points
        self._leases: Final = leases
        self._offers: Final = offers
        self._upstreams: Final = upstreams
        self._cooldowns: Final = cooldowns
        self._ending: Final = ending
        self._streaming: Final = streaming
        self._tokenizer: Final = tokenizer
        self._clock: Final = clock
        self._draw: Final = draw

    async def answer(self, call: RelayCall) -> WholeAnswer:
        """A whole answer: runs to its end whoever left, and is settled as completed."""
        try:
            return await self._answer(await self._admit(call))
        finally:
            # Whatever went wrong: what nobody works on any more is the sweep's to end.
            self._leases.drop(call.request_id)

    async def stream(self, call: RelayCall, client: ClientStream) -> None:
        """A streamed answer, to its settlement."""
        try:
            await self._stream(await self._admit(call), client)
        finally:
            self._leases.drop(call.request_id)

    async def _answer(self, run: Run) -> WholeAnswer:
        problem: UpstreamProblem | None = None
        for channel in self._in_order(run):
            try:
                return await self._whole(run, channel)
            except AttemptFailed as failure:
                problem = failure.problem
                if not problem.retry_elsewhere:
                    break
        raise await self._nobody_answered(run, problem)

    async def _stream(self, run: Run, client: ClientStream) -> None:
        problem: UpstreamProblem | None = None
        for channel in self._in_order(run):
            try:
                await self._streaming.run(run, channel, client)
                return
            except AttemptFailed as failure:
                problem = failure.problem
                if not problem.retry_elsewhere or client.left:
                    break
        error = await self._nobody_answered(run, problem, left=client.left)
        if client.begun:
            await self._streaming.send_error(client, error)
        else:
            raise error

    async def _whole(self, run: Run, channel: OfferedChannel) -> WholeAnswer:
        began_s = self._clock.monotonic_s()
        answer = await self._upstreams.open(run, channel)
        try:
            body = await answer.read(ANSWER_BYTES_MAX)
        except TransportError as error:
            answer.cancel()
            problem = replace(problem_of_transport(error), retry_elsewhere=False)
            raise self._upstreams.failed(channel, problem, began_s) from error
        await answer.release()
        parsed = parse_answer(body, secrets=(channel.target.secret,))
        if parsed.error is not None:
            raise self._upstreams.failed(channel, parsed.error, began_s)
        self._upstreams.succeeded(channel)
        run.take(parsed.delta, self._clock.monotonic_s())
        charged = await self._ending.settle_complete(run, 200)
        return WholeAnswer(body, format_points(charged.amount_upt))

    async def _admit(self, call: RelayCall) -> Run:
        """Holds the points, or a plan's call. Raises what `Points.hold` does; ModelNotFound."""
        request = call.request
        offer = self._offers.offer(request.model)
        if offer is None:
            raise ModelNotFound(f"The model `{request.model}` does not exist here.")
        now_s = self._clock.monotonic_s()
        run = Run(call, offer, self._plan(offer, now_s), now_s)
        asked = HoldAsked(
            request_id=call.request_id,
            purpose=PURPOSE,
            key=call.key,
            model=request.model,
            price=offer.price,
            price_ref=offer.price_ref,
            streamed=request.streamed,
            input_bound=request.input_bound,
            output_limit=request.output_limit,
            choices=request.n,
            channels=run.order,
            lease_s=self._leases.lease_s,
            concurrency=call.concurrency,
            plans=self._offers.plans,
            groups=self._offers.groups,
        )
        held = await self._points.hold(call.account, asked, call.command_id, call.body_hash)
        run.admitted(held)
        self._leases.track(call.request_id, run.progress)
        run.output_limit = await self._payable_output(run, held.reach_upt)
        return run

    async def _payable_output(self, run: Run, reach_upt: int) -> int | None:
        """The limit to send upstream where the client's own cannot be paid for; else None."""
        request = run.call.request
        wanted = (request.output_limit or OUTPUT_CEILING) * request.n
        payable = run.affordable_output(reach_upt, request.input_bound)
        if payable is None or payable >= wanted:
            return None
        if request.output_limit is None and payable >= OUTPUT_HELD_MAX * request.n:
            return payable // request.n  # plenty for any answer: not worth counting the input
        counted = await run.count(self._tokenizer)
        payable = run.affordable_output(reach_upt, counted.input)
        if payable is None or payable >= wanted:
            return None
        if payable < request.n:
            missing_upt = run.bound_upt(counted.input, request.n) - reach_upt
            reason = ReleaseReason.UNAFFORDABLE
            await self._ending.release(run, reason, 402, "insufficient_quota")
            raise insufficient(max(1, missing_upt))
        return payable // request.n

    def _plan(self, offer: Offer, now_s: float) -> tuple[ChannelId, ...]:
        candidates = [Candidate(c.channel, c.priority, c.weight) for c in offer.channels]
        order = plan_channels(
            candidates, draw=self._draw, cooling_until_s=self._cooldowns.cooling(now_s)
        )
        return order[:ATTEMPTS_MAX]

    @staticmethod
    def _in_order(run: Run) -> list[OfferedChannel]:
        by_id = {channel.channel: channel for channel in run.offer.channels}
        return [by_id[channel] for channel in run.order]

    async def _nobody_answered(
        self, run: Run, problem: UpstreamProblem | None, *, left: bool = False
    ) -> Exception:
        assert problem is not None, "an offer has at least one channel"
        reason = ReleaseReason.CLIENT_LEFT if left else release_reason(problem)
        await self._ending.release(run, reason, 0 if left else problem.status, problem.code)
        return answered(problem)
