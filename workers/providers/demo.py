"""The built-in `demo` model: a transport without a network; adapter, hold and bill are real.

It answers in the language of the question, says what it is, and reports usage it has counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from backend.kit.outbound import AnswerTooLarge, Deadlines, UpstreamCut, UpstreamRequest
from schemas.chat import ChatRequest, parse_chat_request, text_of_input
from schemas.errors import BadRequest
from schemas.openai import (
    DONE_FRAME,
    ChunkHead,
    error_body,
    finish_frame,
    text_frame,
    usage_frame,
    usage_wire,
)
from schemas.prompt import InputText
from schemas.usage import Usage

DEMO_MODEL: Final = "demo"
DEMO_BASE_URL: Final = "demo:"
CHUNK_DELAY_S: Final = 0.02
QUOTE_CHARACTERS_MAX: Final = 200

_CHINESE: Final = (
    "你好！我是算盘内置的演示模型，不是真正的人工智能，也不会联网。"
    "你刚才说的是：「{question}」。\n\n"
    "这一次调用和真实模型走的是同一条路：先预扣点数，再调用，最后按实际用量结算，"
    "每一笔都能在账单里查到。添加一个渠道之后，就可以换成真正的模型了。"
)
_ENGLISH: Final = (
    "Hello! I am Suanpan's built-in demo model: no real intelligence, and no network. "
    "You said: “{question}”.\n\n"
    "This call took the same path as any other: points were held, the call was made, and exactly "
    "what it used is being charged; your statement shows every step. Add a channel to talk to a "
    "real model."
)
_NOTHING_ASKED: Final = "…"


class Counter(Protocol):
    """What the demo needs of `backend.kit.tokenizer.Tokenizer`."""

    async def count_input_off_loop(self, model: str, text: InputText) -> int: ...

    async def pieces_off_loop(self, model: str, text: str) -> tuple[str, ...]: ...


class DemoTransport:
    """A `Transport` whose other end is this file."""

    def __init__(
        self,
        counter: Counter,
        *,
        chunk_delay_s: float = CHUNK_DELAY_S,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._counter = counter
        self._chunk_delay_s = chunk_delay_s
        self._clock_s = clock_s

    async def open(self, request: UpstreamRequest, deadlines: Deadlines) -> DemoAnswer:
        """Answers like a provider: also 400 in OpenAI's shape for a body that is no chat."""
        del deadlines  # nothing here can be late
        try:
            chat = parse_chat_request(request.body)
        except BadRequest as error:
            body = error_body(sentence=error.sentence, kind=error.kind, code=error.code)
            return DemoAnswer(400, (body,), delay_s=0.0)
        text = _answer_to(_question_of(chat))
        whole = await self._counter.pieces_off_loop(chat.model, text)
        pieces = whole[: chat.output_limit]
        prompt_tokens = await self._counter.count_input_off_loop(chat.model, text_of_input(chat))
        reply = _Reply(
            head=ChunkHead(f"chatcmpl-{_request_id_of(request)}", int(self._clock_s()), chat.model),
            pieces=pieces,
            reason="stop" if len(pieces) == len(whole) else "length",
            choices=chat.n,
            usage=Usage(input=prompt_tokens, output=len(pieces) * chat.n),
        )
        if chat.streamed:
            frames = reply.frames(with_usage=chat.wants_usage)
            return DemoAnswer(200, frames, self._chunk_delay_s, "text/event-stream")
        return DemoAnswer(200, (reply.body(),), self._chunk_delay_s)

    async def close(self) -> None:
        """Nothing is open."""


class DemoAnswer:
    """An `UpstreamAnswer` made of pieces that are already there."""

    def __init__(
        self,
        status: int,
        pieces: tuple[bytes, ...],
        delay_s: float,
        content_type: str = "application/json",
    ) -> None:
        self.status = status
        self.headers: Mapping[str, str] = MappingProxyType({"content-type": content_type})
        self._pieces = pieces
        self._delay_s = delay_s
        self._cancelled = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await self._pause()
            yield piece

    async def read(self, limit_bytes: int) -> bytes:
        await self._pause()
        body = b"".join(self._pieces)
        if len(body) > limit_bytes:
            raise AnswerTooLarge(f"more than {limit_bytes} bytes")
        return body

    def cancel(self) -> None:
        self._cancelled.set()

    async def release(self) -> None:
        self._cancelled.set()

    async def _pause(self) -> None:
        """As a network would: takes a moment, and ends at once when the caller hangs up."""
        try:
            async with asyncio.timeout(self._delay_s):
                await self._cancelled.wait()
        except TimeoutError:
            return
        raise UpstreamCut("the demo call was cancelled", answered=True)


class _Reply(msgspec.Struct, frozen=True):
    """What the demo says, before it is written as a stream or as one body."""

    head: ChunkHead
    pieces: tuple[str, ...]
    reason: str
    choices: int
    usage: Usage

    def frames(self, *, with_usage: bool) -> tuple[bytes, ...]:
        indexes = tuple(range(self.choices))
        frames = [text_frame(self.head, index, "", role=True) for index in indexes]
        frames.extend(
            b"".join(text_frame(self.head, index, piece) for index in indexes)
            for piece in self.pieces
            if piece
        )
        frames.append(finish_frame(self.head, indexes, self.reason))
        if with_usage:
            frames.append(usage_frame(self.head, self.usage))
        frames.append(DONE_FRAME)
        return tuple(frames)

    def body(self) -> bytes:
        text = "".join(self.pieces)
        return msgspec.json.encode(
            {
                "id": self.head.id,
                "object": "chat.completion",
                "created": self.head.created_s,
                "model": self.head.model,
                "choices": [
                    {
                        "index": index,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": self.reason,
                    }
                    for index in range(self.choices)
                ],
                "usage": usage_wire(self.usage),
            }
        )


def _answer_to(question: str) -> str:
    template = _CHINESE if _is_chinese(question) else _ENGLISH
    quoted = " ".join(question.split())
    if len(quoted) > QUOTE_CHARACTERS_MAX:
        quoted = quoted[: QUOTE_CHARACTERS_MAX - 1] + "…"
    # Not str.format: a question may hold braces.
    return template.replace("{question}", quoted or _NOTHING_ASKED)


def _is_chinese(text: str) -> bool:
    return any("一" <= character <= "鿿" for character in text)


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct, frozen=True):
    role: str = ""
    content: str | list[_Part] | None = None


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_MESSAGES: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _question_of(chat: ChatRequest) -> str:
    """The text of the last message of the user; empty where there is none to be read."""
    for raw in reversed(_MESSAGES.decode(chat.fields["messages"])):
        try:
            message = _MESSAGE.decode(raw)
        except msgspec.DecodeError:
            continue
        if message.role == "user":
            if isinstance(message.content, list):
                return " ".join(part.text for part in message.content if part.text)
            return message.content or ""
    return ""


def _request_id_of(request: UpstreamRequest) -> str:
    return next((value for name, value in request.headers if name == "x-request-id"), DEMO_MODEL)
