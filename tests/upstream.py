"""A fake model provider: OpenAI's wire format over a real socket, doing what a script says.

In a test: `async with FakeUpstream() as upstream: upstream.play(Script(...))`. As a process:
`python -m tests.upstream --port N`, steered by `POST /__script`, `POST /__gate`, `GET /__seen`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
from aiohttp import web

BODY_BYTES_MAX = 64 * 1024 * 1024


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one request is answered. Chunks are counted from 1; content chunks only."""

    texts: tuple[str, ...] = ("Hel", "lo", "!")
    reasoning: tuple[str, ...] = ()
    """Sent as `reasoning_content`, before the texts."""
    tool_name: str | None = None
    """Answers with a call of this tool; `texts` are then pieces of its arguments."""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = msgspec.field(
        default_factory=lambda: {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
        }
    )
    """None: no usage is reported, even when asked for."""
    usage_varies: bool = False
    """Every request gets token counts of its own, made from `usage` and its number."""
    usage_unasked: bool = False
    """Report usage on a stream without `include_usage`."""
    usage_in_last_chunk: bool = False
    """Usage rides on the chunk with the finish reason, as some providers do."""
    send_done: bool = True
    status: int = 200
    error: dict[str, Any] | None = None
    """The `error` object for a status that is not 200; a plain one where None."""
    retry_after: str | None = None
    fail_first: int = 0
    """So many requests get `fail_status`, then the script plays."""
    fail_status: int = 503
    first_byte_delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    gated: bool = False
    """Every content chunk (and an unstreamed body) waits for a permit."""
    cut_before_head: bool = False
    cut_after: int | None = None
    """Drop the connection after so many content chunks; 0: after the head."""
    half_frame_after: int | None = None
    """After so many chunks: half a frame, then the connection drops."""
    end_early_after: int | None = None
    """After so many chunks the body ends properly, without finish reason and `[DONE]`."""
    error_frame_after: int | None = None
    """After so many chunks: an error frame inside the 200, then the end."""
    comment_first: bool = False


def _tell_nobody(what: str, seen: Seen) -> None:
    del what, seen


class Seen:
    """One request that came: what it was, and how far the answer got."""

    def __init__(self, number: int, request: web.Request, body: bytes) -> None:
        self.number = number
        self.path = request.path_qs
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.request_id = self.headers.get("x-request-id", "")
        self.body = body
        self.json: Any = json.loads(body) if body else None
        self.status = 0
        self.chunks_sent = 0
        self.reported_usage: dict[str, Any] | None = None
        """What this provider would bill: set once the frame or body with it was written."""
        self.finished = False
        self.client_left_at_s: float | None = None
        """Unix time at which the other side closed before the end."""
        self.cut_by_us = False
        self.tell: Callable[[str, Seen], None] = _tell_nobody
        self.permits = asyncio.Semaphore(0)
        self.changed = asyncio.Condition()

    def allow(self, chunks: int = 1) -> None:
        """Let a gated answer go on by so many chunks."""
        for _ in range(chunks):
            self.permits.release()

    async def until(self, what: str, timeout_s: float = 5.0) -> None:
        """Wait for `finished`, `client_left` or `chunks:3`."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: self._is(what))

    async def note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def as_dict(self) -> dict[str, Any]:
        names = ("number", "path", "headers", "request_id", "json", "status", "chunks_sent")
        more = ("reported_usage", "finished", "client_left_at_s", "cut_by_us")
        return {name: getattr(self, name) for name in (*names, *more)}

    def _is(self, what: str) -> bool:
        if what == "finished":
            return self.finished
        if what == "client_left":
            return self.client_left_at_s is not None
        return self.chunks_sent >= int(what.removeprefix("chunks:"))


class FakeUpstream:
    """The server. `default` answers what no played script is left for."""

    def __init__(self, default: Script | None = None) -> None:
        self.default = default or Script()
        self.by_model: dict[str, Script] = {}
        self.seen: list[Seen] = []
        self.tell: Callable[[str, Seen], None] = _tell_nobody
        """Called at once when a request has `arrived`, a `chunk` or its usage (`reported`) went
        out."""
        self.url = ""
        self._queue: deque[Script] = deque()
        self._failed = 0
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._notice: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FakeUpstream:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/__script", self._on_script)
        app.router.add_post("/__gate", self._on_gate)
        app.router.add_get("/__seen", self._on_seen)
        app.router.add_get("/v1/models", self._on_models)
        app.router.add_post("/{path:.*}", self._on_chat)
        # Cancellation is how a handler learns at once that its client has left.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def play(self, *scripts: Script) -> None:
        """Answer the next requests so, one script each."""
        self._queue.extend(scripts)

    async def arrived(self, count: int = 1, timeout_s: float = 5.0) -> Seen:
        """Wait until so many requests came; gives the last of them."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.seen) >= count)
        return self.seen[count - 1]

    def reported(self) -> dict[str, dict[str, Any]]:
        """Usage reported per x-request-id."""
        return {
            seen.request_id: seen.reported_usage
            for seen in self.seen
            if seen.reported_usage is not None
        }

    def _next_script(self, model: str) -> Script:
        if self._queue:
            script = self._queue.popleft()
            if script.fail_first > 0:
                rest = msgspec.structs.replace(script, fail_first=script.fail_first - 1)
                self._queue.appendleft(rest)
                return _failing(script)
            return script
        script = self.by_model.get(model, self.default)
        if self._failed < script.fail_first:
            self._failed += 1
            return _failing(script)
        return script

    async def _on_chat(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(len(self.seen) + 1, request, await request.read())
        seen.tell = self.tell
        self.seen.append(seen)
        seen.tell("arrived", seen)
        async with self._arrived:
            self._arrived.notify_all()
        script = self._next_script(str(seen.json.get("model", "")))
        try:
            response = await _answer(request, seen, script)
        except (asyncio.CancelledError, ConnectionError):
            if not seen.cut_by_us:
                seen.client_left_at_s = time.time()
            # The handler is being cancelled: the notice goes out from a task of its own.
            self._notice = asyncio.get_running_loop().create_task(seen.note())
            raise
        seen.finished = True
        await seen.note()
        return response

    async def _on_script(self, request: web.Request) -> web.Response:
        """`{"default": {…}, "by_model": {…}, "queue": [{…}], "forget": true}`, each optional."""
        order = await request.json()
        if order.get("forget"):
            self.seen.clear()
            self._queue.clear()
            self._failed = 0
        if "default" in order:
            self.default = msgspec.convert(order["default"], Script)
            self._failed = 0
        for model, script in order.get("by_model", {}).items():
            self.by_model[model] = msgspec.convert(script, Script)
        self._queue.extend(msgspec.convert(order.get("queue", []), list[Script]))
        return web.json_response({"ok": True})

    async def _on_gate(self, request: web.Request) -> web.Response:
        """`{"chunks": 1}` for all requests seen, or for the one with `request_id`."""
        order = await request.json()
        chosen = [
            seen
            for seen in self.seen
            if order.get("request_id") in (None, seen.request_id) and not seen.finished
        ]
        for seen in chosen:
            seen.allow(int(order.get("chunks", 1)))
        return web.json_response({"opened": len(chosen)})

    async def _on_seen(self, request: web.Request) -> web.Response:
        del request
        return web.json_response([seen.as_dict() for seen in self.seen])

    async def _on_models(self, request: web.Request) -> web.Response:
        del request
        data = [{"id": model, "object": "model", "created": 1} for model in self.by_model]
        return web.json_response({"object": "list", "data": data})


def _failing(script: Script) -> Script:
    return Script(status=script.fail_status, error=script.error, retry_after=script.retry_after)


async def _answer(request: web.Request, seen: Seen, script: Script) -> web.StreamResponse:
    if script.first_byte_delay_s:
        await asyncio.sleep(script.first_byte_delay_s)
    if script.cut_before_head:
        await _cut(request, seen)
    seen.status = script.status
    if script.status != 200:
        return _refusal(script)
    if seen.json.get("stream"):
        return await _stream(request, seen, script)
    return await _whole(request, seen, script)


def _refusal(script: Script) -> web.Response:
    headers = {} if script.retry_after is None else {"retry-after": script.retry_after}
    error = script.error or {"message": "scripted failure", "type": "server_error", "code": None}
    return web.json_response({"error": error}, status=script.status, headers=headers)


async def _stream(request: web.Request, seen: Seen, script: Script) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    if script.comment_first:
        await response.write(b": keep-alive\n\n")
    choices = range(seen.json.get("n") or 1)
    for delta in _deltas(script):
        if await _ended_by_script(request, response, seen, script):
            return response
        if script.gated:
            await seen.permits.acquire()
        if script.chunk_delay_s:
            await asyncio.sleep(script.chunk_delay_s)
        frames = [_chunk(seen, [_choice(index, delta, None)]) for index in choices]
        await response.write(b"".join(frames))
        seen.chunks_sent += 1
        seen.tell("chunk", seen)
        await seen.note()
    if await _ended_by_script(request, response, seen, script):
        return response
    await _end(response, seen, script, choices)
    return response


async def _ended_by_script(
    request: web.Request, response: web.StreamResponse, seen: Seen, script: Script
) -> bool:
    """Does the script end the stream here?"""
    sent = seen.chunks_sent
    if sent == script.cut_after:
        await _cut(request, seen)
    if sent == script.half_frame_after:
        await response.write(b'data: {"id":"chatcmpl-1","choices":[{"index":0,"del')
        await _cut(request, seen)
    if sent == script.error_frame_after:
        error = script.error or {"message": "scripted failure", "type": "server_error"}
        await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        await response.write_eof()
        return True
    if sent == script.end_early_after:
        await response.write_eof()
        return True
    return False


async def _end(response: web.StreamResponse, seen: Seen, script: Script, choices: range) -> None:
    options = seen.json.get("stream_options") or {}
    asked = bool(options.get("include_usage")) or script.usage_unasked
    usage = _usage_of(seen, script) if asked else None
    ends = [_choice(index, {}, _finish_reason(script)) for index in choices]
    if usage is not None and script.usage_in_last_chunk:
        await response.write(_chunk(seen, ends, usage))
    else:
        await response.write(_chunk(seen, ends))
        if usage is not None:
            await response.write(_chunk(seen, [], usage))
    _note_reported(seen, usage)
    if script.send_done:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()


async def _whole(request: web.Request, seen: Seen, script: Script) -> web.StreamResponse:
    if script.gated:
        await seen.permits.acquire()
    if script.error_frame_after is not None:
        return web.json_response({"error": script.error or {"message": "scripted failure"}})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(script.texts)}
    if script.reasoning:
        message["reasoning_content"] = "".join(script.reasoning)
    if script.tool_name is not None:
        call = {"name": script.tool_name, "arguments": message["content"]}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        }
    choices = [
        {"index": index, "message": message, "finish_reason": _finish_reason(script)}
        for index in range(seen.json.get("n") or 1)
    ]
    answer: dict[str, Any] = {**_head(seen, "chat.completion"), "choices": choices}
    usage = _usage_of(seen, script)
    if usage is not None:
        answer["usage"] = usage
    body = json.dumps(answer).encode()
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    if script.cut_after is not None or script.half_frame_after is not None:
        await response.write(body[: len(body) // 2])
        await _cut(request, seen)
    await response.write(body)
    seen.chunks_sent = 1
    _note_reported(seen, usage)
    await response.write_eof()
    return response


def _usage_of(seen: Seen, script: Script) -> dict[str, Any] | None:
    if script.usage is None or not script.usage_varies:
        return script.usage
    prompt = int(script.usage["prompt_tokens"]) + seen.number % 89
    completion = int(script.usage["completion_tokens"]) + seen.number % 31
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _note_reported(seen: Seen, usage: dict[str, Any] | None) -> None:
    seen.reported_usage = usage
    if usage is not None:
        seen.tell("reported", seen)


async def _cut(request: web.Request, seen: Seen) -> NoReturn:
    """Close the socket; the handler then ends by the cancellation this brings."""
    seen.cut_by_us = True
    if request.transport is not None:
        request.transport.close()
    await asyncio.Event().wait()
    raise AssertionError("a closed connection cancels its handler")


def _deltas(script: Script) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"reasoning_content": text} for text in script.reasoning]
    for number, text in enumerate(script.texts):
        if script.tool_name is None:
            deltas.append({"content": text})
            continue
        call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
        if number == 0:
            call |= {"id": "call_1", "type": "function"}
            call["function"]["name"] = script.tool_name
        deltas.append({"tool_calls": [call]})
    return deltas


def _finish_reason(script: Script) -> str:
    return script.finish_reason or ("stop" if script.tool_name is None else "tool_calls")


def _choice(index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason}


def _chunk(seen: Seen, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
    chunk = {**_head(seen, "chat.completion.chunk"), "choices": choices, "usage": usage}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def _head(seen: Seen, kind: str) -> dict[str, Any]:
    number, model = seen.number, seen.json.get("model")
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 1, "model": model}


async def _serve(port: int) -> None:
    upstream = FakeUpstream()
    await upstream.start(port)
    print(json.dumps({"url": upstream.url}), flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await upstream.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
