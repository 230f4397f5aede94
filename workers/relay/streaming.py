"""Passes one streamed answer on, frame by frame, and ends it by the settlement table.

Bytes go on as they came; only the usage frame that nobody asked for and `[DONE]` are withheld.
"""

from __future__ import annotations

import asyncio
from typing import Final

from backend.kit.clock import Clock
from backend.kit.outbound import TransportError, UpstreamAnswer
from backend.kit.tokenizer import Tokenizer
from backend.ledger.points import Points
from schemas.chat import ProblemClass, UpstreamProblem
from schemas.errors import SuanpanError, Unavailable
from schemas.ledger import ReleaseReason
from schemas.money import format_points
from schemas.openai import DONE_FRAME, error_body, error_frame
from schemas.relay import ClientStream
from workers.providers.openai_answer import ChatStream, Frame, FrameKind
from workers.providers.problems import problem_of
from workers.providers.sse import FrameTooLarge
from workers.relay.ending import Ending
from workers.relay.keepalive import KeepAlive
from workers.relay.ports import OfferedChannel
from workers.relay.run import Run
from workers.relay.upstream import Upstreams, answered, problem_of_transport

EXTEND_TOKENS: Final = 2_048
"""Output tokens per choice that one extension of a hold pays for."""
GRACE_AFTER_TOKEN_S: Final = 2.0
"""How long an answer is read on for its usage after the client left it."""
GRACE_BEFORE_TOKEN_S: Final = 0.8
CLIENT_LEFT: Final = "client_left"


class _OutOfPoints(Exception):
    """The answer has reached what the account can pay for."""


class _Broken(Exception):
    """The answer ended before its end; some of it may have been passed on."""

    def __init__(self, problem: UpstreamProblem) -> None:
        super().__init__(problem.code)
        self.problem = problem


class Streaming:
    """Shared by all calls of a process."""

    def __init__(
        self,
        points: Points,
        upstreams: Upstreams,
        ending: Ending,
        tokenizer: Tokenizer,
        clock: Clock,
        keepalive_s: float,
    ) -> None:
        self._points: Final = points
        self._upstreams: Final = upstreams
        self._ending: Final = ending
        self._tokenizer: Final = tokenizer
        self._clock: Final = clock
        self._keepalive_s: Final = keepalive_s

    async def run(self, run: Run, channel: OfferedChannel, client: ClientStream) -> None:
        """One attempt on one channel. Raises AttemptFailed where nothing was passed on yet."""
        began_s = self._clock.monotonic_s()
        parser = ChatStream(choices=run.call.request.n, secrets=(channel.target.secret,))
        keepalive = KeepAlive(client, self._keepalive_s)
        try:
            complete = await self._read(run, channel, client, parser, keepalive)
        except _OutOfPoints:
            await self._cut_by_points(run, parser, client)
            return
        except _Broken as broken:
            failed = self._upstreams.failed(channel, broken.problem, began_s)
            if not run.passed_on and not client.left:
                raise failed from broken
            await self._broken(run, client, broken.problem)
            return
        finally:
            keepalive.stop()
        if complete:
            self._upstreams.succeeded(channel)
            await self._complete(run, client)
        else:
            await self._abandoned(run, client)

    async def send_error(self, client: ClientStream, error: Exception) -> None:
        """An error after the head went out: a frame, in the client's dialect."""
        if isinstance(error, SuanpanError):
            body = error_body(sentence=error.sentence, kind=error.kind, code=error.code)
            await client.send(error_frame(body))

    async def _read(
        self,
        run: Run,
        channel: OfferedChannel,
        client: ClientStream,
        parser: ChatStream,
        keepalive: KeepAlive,
    ) -> bool:
        """Reads the answer to its end; False where the client left and its end did not come.

        Raises _Broken, _OutOfPoints and what `Upstreams.open` raises.
        """
        answer: UpstreamAnswer | None = None
        whole = False
        try:
            async with asyncio.timeout(None) as deadline:
                client.on_left(lambda: self._left(run, deadline))
                answer = await self._upstreams.open(run, channel)
                async for chunk in answer.chunks():
                    await self._forward(run, parser.feed(chunk), client, keepalive)
                    if parser.done:
                        break
                    # An answer that has come to its end is settled, however long it was.
                    if not parser.complete:
                        await self._keep_paid(run)
                await self._forward(run, parser.finish(), client, keepalive)
            whole = True
            await answer.release()
        except TimeoutError:
            return parser.complete
        except (TransportError, FrameTooLarge) as error:
            if parser.complete:
                return True  # only `[DONE]` is missing: every choice has its finish reason
            problem = (
                problem_of_transport(error)
                if isinstance(error, TransportError)
                else problem_of(ProblemClass.UPSTREAM_ERROR)
            )
            raise _Broken(problem) from error
        finally:
            # From here on a hang-up changes nothing: the deadline it would move is over.
            client.on_left(_nothing)
            if answer is not None and not whole:
                answer.cancel()
        if not parser.complete and not client.left:
            raise _Broken(problem_of(ProblemClass.UPSTREAM_ERROR))
        return parser.complete

    async def _forward(
        self, run: Run, frames: list[Frame], client: ClientStream, keepalive: KeepAlive
    ) -> None:
        out: list[bytes] = []
        failed: UpstreamProblem | None = None
        for frame in frames:
            if frame.kind is FrameKind.ERROR:
                failed = frame.error or problem_of(ProblemClass.UPSTREAM_ERROR)
                break
            run.take(frame.delta, self._clock.monotonic_s())
            if frame.kind is FrameKind.CONTENT or (
                frame.kind is FrameKind.USAGE and run.call.request.wants_usage
            ):
                out.append(frame.raw)
        if out and not client.left:
            run.passed_on = True
            keepalive.heard()
            await client.send(out[0] if len(out) == 1 else b"".join(out))
        if failed is not None:
            raise _Broken(failed)

    async def _keep_paid(self, run: Run) -> None:
        """Holds more for a long answer; where nothing is left, counts exactly before cutting."""
        paid = run.output_paid()
        if paid is None or run.output_estimate <= paid:
            return
        # Much may have come at once: as many steps as it takes.
        step = EXTEND_TOKENS * run.call.request.n
        steps = -(-(run.output_estimate - paid) // step)
        wanted_upt = run.bound_upt(0, steps * step)
        call = run.call
        try:
            run.held_upt += await self._points.extend(call.account, call.request_id, wanted_upt)
        except Unavailable:
            return  # the answer goes on; the settlement takes what the account has
        paid = run.output_paid()
        if paid is None or run.output_estimate <= paid:
            return
        usage = await run.count(self._tokenizer)
        paid = run.output_paid()
        if paid is not None and usage.output >= paid:
            raise _OutOfPoints

    @staticmethod
    def _left(run: Run, deadline: asyncio.Timeout) -> None:
        run.left_before_token = not run.begun
        grace_s = GRACE_AFTER_TOKEN_S if run.begun else GRACE_BEFORE_TOKEN_S
        deadline.reschedule(asyncio.get_running_loop().time() + grace_s)

    async def _complete(self, run: Run, client: ClientStream) -> None:
        if run.left_before_token and run.usage is None and not run.begun:
            await self._ending.release(run, ReleaseReason.CLIENT_LEFT, 0, CLIENT_LEFT)
            return
        await self._last_frames(run, client, b"", DONE_FRAME)

    async def _cut_by_points(self, run: Run, parser: ChatStream, client: ClientStream) -> None:
        model = run.upstream_model or run.call.request.model
        head = parser.head(answer_id=run.call.request_id, created_s=0, model=model)
        run.usage = None
        await self._last_frames(run, client, parser.length_frame(head), DONE_FRAME)

    async def _broken(self, run: Run, client: ClientStream, problem: UpstreamProblem) -> None:
        """The provider broke off: what was received is counted, unless the client had left before
        it, or nothing was.
        """
        error = answered(problem)
        if not run.begun or run.left_before_token:
            reason = ReleaseReason.CLIENT_LEFT if client.left else ReleaseReason.UPSTREAM_CUT
            await self._ending.release(run, reason, 0 if client.left else 200, problem.code)
            await self.send_error(client, error)
            return
        run.usage = None
        body = error_body(sentence=error.sentence, kind=error.kind, code=error.code)
        await self._last_frames(run, client, b"", error_frame(body), problem.code)

    async def _abandoned(self, run: Run, client: ClientStream) -> None:
        """The client left and the answer's end did not come in time."""
        if not run.begun or run.left_before_token:
            await self._ending.release(run, ReleaseReason.CLIENT_LEFT, 0, CLIENT_LEFT)
            return
        run.usage = None
        await self._last_frames(run, client, b"", b"", CLIENT_LEFT)

    async def _last_frames(
        self, run: Run, client: ClientStream, first: bytes, last: bytes, error: str | None = None
    ) -> None:
        """Settles, and only then lets the end of the stream out."""
        status = 0 if client.left else 200
        try:
            if run.usage is not None and error is None:
                charged = await self._ending.settle_complete(run, status)
            else:
                charged = await self._ending.settle_counted(run, status, error)
        except Unavailable as unavailable:
            await self.send_error(client, unavailable)
            return
        points = f": suanpan-points {format_points(charged.amount_upt)}\n\n".encode()
        await client.send(first + points + last)


def _nothing() -> None:
    """What a hang-up does once the answer was read."""
