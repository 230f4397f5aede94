"""Opens a call on one channel, and says what a failure means: try elsewhere, cool down, or tell."""

from __future__ import annotations

from typing import Final

import structlog

from backend.kit.clock import Clock
from backend.kit.outbound import (
    ConnectFailed,
    Deadlines,
    FirstByteTimeout,
    IdleTimeout,
    TransportError,
    UpstreamAnswer,
)
from schemas.chat import ProblemClass, UpstreamProblem
from schemas.errors import UpstreamAnswered
from schemas.ledger import ReleaseReason
from workers.providers.openai import build_chat
from workers.providers.problems import classify_error, problem_of
from workers.relay.own_limit import OwnLimits, smaller_limit
from workers.relay.ports import OfferedChannel
from workers.relay.run import Run
from workers.routing import Cooldowns

ERROR_BYTES_MAX: Final = 64 * 1024

_log = structlog.get_logger("relay.upstream")


class AttemptFailed(Exception):
    """This channel did not answer; nothing of an answer was passed on."""

    def __init__(self, problem: UpstreamProblem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class Upstreams:
    """Opens calls; remembers which channels failed lately."""

    def __init__(self, cooldowns: Cooldowns, deadlines: Deadlines, clock: Clock) -> None:
        self._cooldowns: Final = cooldowns
        self._deadlines: Final = deadlines
        self._clock: Final = clock
        self._own_limits: Final = OwnLimits()

    async def open(self, run: Run, channel: OfferedChannel) -> UpstreamAnswer:
        """An answer with status 200. Raises AttemptFailed."""
        run.attempts += 1
        run.channel = channel
        began_s = self._clock.monotonic_s()
        model = channel.target.upstream_model
        if run.limit_is_ours and run.output_limit is not None:
            run.output_limit = self._own_limits.within(channel.channel, model, run.output_limit)
        outcome = await self._call(run, channel)
        if isinstance(outcome, UpstreamProblem) and self._asks_less(run, channel, outcome):
            outcome = await self._call(run, channel)
        if isinstance(outcome, UpstreamProblem):
            raise self.failed(channel, outcome, began_s)
        return outcome

    async def _call(self, run: Run, channel: OfferedChannel) -> UpstreamAnswer | UpstreamProblem:
        request = build_chat(
            channel.target,
            run.call.request,
            request_id=run.call.request_id,
            output_limit=run.output_limit,
        )
        try:
            answer = await channel.transport.open(request, self._deadlines)
            if answer.status == 200:
                return answer
            return await self._problem_of(answer, channel)
        except TransportError as error:
            return problem_of_transport(error)

    def _asks_less(self, run: Run, channel: OfferedChannel, problem: UpstreamProblem) -> bool:
        """Whether the model refused the limit that we had chosen, and takes a smaller one."""
        if run.output_limit is None or not run.limit_is_ours:
            return False
        smaller = smaller_limit(problem, run.output_limit, run.input_tokens)
        if smaller is None:
            return False
        run.output_limit = smaller
        if problem.problem is ProblemClass.BAD_REQUEST:
            self._own_limits.learn(channel.channel, channel.target.upstream_model, smaller)
        _log.info("output limit lowered", channel=channel.channel, tokens=smaller)
        return True

    def failed(
        self, channel: OfferedChannel, problem: UpstreamProblem, began_s: float
    ) -> AttemptFailed:
        """Notes the failure; the channel rests if the problem is its own."""
        if problem.cooldown:
            self._cooldowns.failed(
                channel.channel,
                now_s=self._clock.monotonic_s(),
                started_s=began_s,
                retry_after_s=problem.retry_after_s,
            )
        _log.info("attempt failed", channel=channel.channel, problem=problem.problem.value)
        return AttemptFailed(problem)

    def succeeded(self, channel: OfferedChannel) -> None:
        self._cooldowns.succeeded(channel.channel)

    async def _problem_of(self, answer: UpstreamAnswer, channel: OfferedChannel) -> UpstreamProblem:
        try:
            body = await answer.read(ERROR_BYTES_MAX)
        finally:
            await answer.release()
        secrets = (channel.target.secret,)
        return classify_error(answer.status, answer.headers, body, secrets=secrets)


def problem_of_transport(error: TransportError) -> UpstreamProblem:
    """502 for a connection that failed, 504 for silence."""
    if isinstance(error, FirstByteTimeout | IdleTimeout):
        return problem_of(ProblemClass.TIMEOUT)
    if isinstance(error, ConnectFailed):
        return problem_of(ProblemClass.UPSTREAM_ERROR, "The model provider cannot be reached.")
    return problem_of(ProblemClass.UPSTREAM_ERROR)


def answered(problem: UpstreamProblem) -> UpstreamAnswered:
    """The problem as the client's error."""
    return UpstreamAnswered(
        problem.sentence, problem.code, problem.status, problem.kind, problem.retry_after_s
    )


def release_reason(problem: UpstreamProblem) -> ReleaseReason:
    match problem.problem:
        case ProblemClass.TIMEOUT:
            return ReleaseReason.UPSTREAM_TIMEOUT
        case (
            ProblemClass.BAD_REQUEST
            | ProblemClass.CONTEXT_TOO_LONG
            | ProblemClass.CONTENT_FILTER
            | ProblemClass.NOT_FOUND
        ):
            return ReleaseReason.UPSTREAM_REFUSED
        case _:
            return ReleaseReason.UPSTREAM_ERROR
