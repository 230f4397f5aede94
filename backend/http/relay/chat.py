"""`POST /v1/chat/completions`: the hot path, plain ASGI. One hold, one call, one settlement.

The call runs in a task of its own: a hang-up, or this handler's cancellation, never reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from hashlib import sha256
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import structlog
from litestar.types import Receive, Scope, Send
from msgspec.structs import replace

from backend.http.body import read_body
from backend.http.metrics import RelayMetrics
from backend.http.relay.callers import Callers, CatchUp
from backend.http.relay.client import AsgiClientStream
from backend.http.relay.errors import error_answer, internal_answer, json_headers
from backend.http.relay.gate import Admission, RateGate
from backend.identity.key_view import KeyEntry
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import DatabaseError, unavailable
from backend.ledger.points import Points
from schemas.chat import ChatRequest, parse_chat_request
from schemas.errors import BadRequest, ModelNotFound, SuanpanError
from schemas.ids import RequestId, uuid7
from schemas.openai import error_frame
from schemas.relay import ChatRelay, RelayCall, WholeAnswer

ROUTE: Final = "/v1/chat/completions"
IDEMPOTENCY_KEY_MAX: Final = 255

_T = TypeVar("_T")

_log = structlog.get_logger("http.relay")


class Models(Protocol):
    """Which models may be called: those with a price and an enabled channel."""

    def available(self, model: str) -> bool: ...


class CallTasks:
    """Calls under way in this process; `drain` waits for them when it stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def drain(self, timeout_s: float) -> int:
        """Waits for all calls; returns how many were still running when time was up."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        return len(self._tasks)


class ChatFront:
    """The ASGI handler; one per process."""

    def __init__(
        self,
        callers: Callers,
        catch_up: CatchUp,
        models: Models,
        gate: RateGate,
        relay: ChatRelay,
        points: Points,
        clock: Clock,
        randomness: Randomness,
        metrics: RelayMetrics,
        body_bytes_max: int,
    ) -> None:
        self._callers: Final = callers
        self._catch_up: Final = catch_up
        self._models: Final = models
        self._gate: Final = gate
        self._relay: Final = relay
        self._points: Final = points
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._metrics: Final = metrics
        self._body_bytes_max: Final = body_bytes_max
        self.calls: Final = CallTasks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = self._clock.monotonic_s()
        request_uuid = uuid7(self._clock.now_us(), self._randomness.bits(74))
        request_id = str(request_uuid)
        try:
            status = await self._answer(scope, receive, send, request_uuid)
        except SuanpanError as error:
            status = error.status
            await _send_whole(send, *error_answer(error, request_id))
        except DatabaseError:
            status = 503
            await _send_whole(send, *error_answer(unavailable(), request_id))
        except Exception:  # noqa: BLE001 - last resort: the client gets a 500 and the log a trace
            status = 500
            _log.error("relay call failed", request_id=request_id, exc_info=True)
            await _send_whole(send, *internal_answer(request_id))
        self._metrics.observe(status, self._clock.monotonic_s() - started_s)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_uuid: UUID) -> int:
        headers: list[tuple[bytes, bytes]] = scope["headers"]  # type: ignore[assignment]
        entry = await self._callers.of(headers, client=scope)
        body = await read_body(headers, receive, self._body_bytes_max)
        request = parse_chat_request(body)
        await self._check_model(entry, request.model)
        call = await self._call(headers, entry, request, request_uuid, body)
        admission = await self._gate.admit(entry, request)
        if admission is not None:
            call = replace(call, meter=admission)
        if request.streamed:
            return await self._stream(call, admission, receive, send)
        running = self.calls.run(_metered(self._relay.answer(call), admission))
        whole: WholeAnswer = await asyncio.shield(running)
        answer_headers = json_headers(whole.body, call.request_id)
        answer_headers.append((b"x-suanpan-points", whole.points.encode()))
        answer_headers += _rates_of(admission)
        await _send_whole(send, 200, answer_headers, whole.body)
        return 200

    async def _check_model(self, entry: KeyEntry, model: str) -> None:
        if entry.allows(model) and not self._models.available(model):
            await self._catch_up()
        if not entry.allows(model) or not self._models.available(model):
            raise ModelNotFound(f"The model `{model}` does not exist or your key may not use it.")

    async def _stream(
        self, call: RelayCall, admission: Admission | None, receive: Receive, send: Send
    ) -> int:
        client = AsgiClientStream(send, call.request_id, _rates_of(admission))
        task = self.calls.run(_metered(self._relay.stream(call, client), admission))
        watcher = asyncio.get_running_loop().create_task(client.watch(receive))
        try:
            await asyncio.wait((task,))
            status = await _status_of(task, client, call.request_id)
        except asyncio.CancelledError:
            client.leave()
            raise
        finally:
            watcher.cancel()
            await client.end()
        return status

    async def _call(
        self,
        headers: list[tuple[bytes, bytes]],
        entry: KeyEntry,
        request: ChatRequest,
        request_uuid: UUID,
        body: bytes,
    ) -> RelayCall:
        request_id = RequestId(str(request_uuid))
        terms, at_once = self._gate.terms(entry), self._gate.at_once(entry)
        key = next((value for name, value in headers if name == b"idempotency-key"), None)
        if key is None:
            return RelayCall(request_id, entry.account, terms, request, request_uuid, b"", at_once)
        if not 0 < len(key) <= IDEMPOTENCY_KEY_MAX:
            raise BadRequest(f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_MAX} characters.")
        command_id = await self._points.free_command_id(entry.account, ROUTE, key.decode("latin-1"))
        digest = sha256(body).digest()
        return RelayCall(request_id, entry.account, terms, request, command_id, digest, at_once)


async def _metered(call: Coroutine[Any, Any, _T], admission: Admission | None) -> _T:
    """A call until it is over, whoever still waits for it; then it counts as under way no more."""
    try:
        return await call
    finally:
        if admission is not None:
            admission.end()


def _rates_of(admission: Admission | None) -> list[tuple[bytes, bytes]]:
    return [] if admission is None else admission.headers()


async def _status_of(task: asyncio.Task[None], client: AsgiClientStream, request_id: str) -> int:
    """How a stream ended. Raises what it failed with before its head went out."""
    error = task.exception()
    if error is not None and not client.begun and not client.left:
        raise error
    if error is not None and not isinstance(error, SuanpanError):
        _log.error("relay stream failed", request_id=request_id, exc_info=error)
        await client.send(error_frame(internal_answer(request_id)[2]))
        return 500
    return 499 if client.left else 200


async def _send_whole(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})  # pyright: ignore[reportArgumentType]
    await send({"type": "http.response.body", "body": body, "more_body": False})
