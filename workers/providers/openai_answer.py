"""Reads OpenAI-shaped answers, streamed or whole, into canonical deltas. Pure; rewrites nothing."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, cast

import msgspec

from schemas.chat import Answer, Delta, ProblemClass, UpstreamProblem
from schemas.openai import (
    DONE,
    ChunkHead,
    WireAnswer,
    WireChoice,
    WireMessage,
    decode_answer,
    finish_frame,
)
from workers.providers.problems import classify_error_inside, problem_of
from workers.providers.reported import usage_of_answer
from workers.providers.sse import SseFrame, SseSplitter

NOTHING: Final = Delta()
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class FrameKind(StrEnum):
    """What a frame is for."""

    CONTENT = "content"
    """Goes on to the client; may carry usage as well."""
    USAGE = "usage"
    """Only usage (`choices` empty): goes on only to a client that asked for it."""
    DONE = "done"
    """`[DONE]`: withheld, the caller ends the stream itself."""
    COMMENT = "comment"
    """Keep-alives and frames without data."""
    ERROR = "error"
    """The provider failed inside a 200 stream; `error` says how. Never passed on as it is."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame of a stream: the bytes to pass on and what they say."""

    raw: bytes
    kind: FrameKind
    delta: Delta = NOTHING
    error: UpstreamProblem | None = None


class ChatStream:
    """Parser of one streamed answer. Feed it what the transport gives, then `finish` it.

    `choices` is the request's `n`. `done` is true once `[DONE]` came; a stream may legally end
    without it where every choice has finished (`complete`).
    """

    __slots__ = ("_choices", "_finished", "_head", "_secrets", "_splitter", "_started", "done")

    def __init__(self, *, choices: int = 1, secrets: tuple[str, ...] = ()) -> None:
        self.done = False
        self._choices = choices
        self._splitter = SseSplitter()
        self._secrets = secrets
        self._head: ChunkHead | None = None
        self._started: set[int] = set()
        self._finished: set[int] = set()

    @property
    def complete(self) -> bool:
        """Did the answer reach its end?"""
        return self.done or len(self._finished) >= self._choices

    def feed(self, chunk: bytes) -> list[Frame]:
        """Frames that `chunk` completes. Raises FrameTooLarge (of `workers.providers.sse`)."""
        return [self._read(frame) for frame in self._splitter.feed(chunk)]

    def finish(self) -> list[Frame]:
        """What is left at the end of the body; half a frame of a cut answer is dropped."""
        return [self._read(frame) for frame in self._splitter.finish() if not _is_half(frame)]

    def head(self, *, answer_id: str, created_s: int, model: str) -> ChunkHead:
        """The head for chunks of our own: the provider's, or the given one where nothing came."""
        return self._head or ChunkHead(answer_id, created_s, model)

    def length_frame(self, head: ChunkHead) -> bytes:
        """A chunk that ends every unfinished choice with `finish_reason: length`."""
        return finish_frame(head, tuple(sorted(self._started - self._finished)) or (0,), "length")

    def _read(self, frame: SseFrame) -> Frame:
        data = frame.data
        if data is None or not data.strip():
            return Frame(frame.raw, FrameKind.COMMENT)
        if data.strip() == DONE:
            self.done = True
            return Frame(frame.raw, FrameKind.DONE)
        try:
            wire = decode_answer(data)
        except msgspec.ValidationError:
            # JSON of a shape nobody knows: the client may understand it.
            return Frame(frame.raw, FrameKind.CONTENT)
        except _UNREADABLE:
            return Frame(frame.raw, FrameKind.ERROR, error=_unreadable())
        problem = _problem_inside(wire, self._secrets)
        if problem is None and frame.event == b"error":
            problem = problem_of(ProblemClass.UPSTREAM_ERROR)
        if problem is not None:
            return Frame(frame.raw, FrameKind.ERROR, error=problem)
        return self._read_chunk(frame.raw, wire)

    def _read_chunk(self, raw: bytes, wire: WireAnswer) -> Frame:
        if self._head is None and isinstance(wire.id, str):
            self._head = _head_of(wire)
        usage = usage_of_answer(wire)
        if not wire.choices:
            kind = FrameKind.CONTENT if usage is None else FrameKind.USAGE
            return Frame(raw, kind, Delta(usage=usage))
        for choice in wire.choices:
            index = choice.index if isinstance(choice.index, int) else 0
            self._started.add(index)
            if _reason(choice) is not None:
                self._finished.add(index)
        return Frame(raw, FrameKind.CONTENT, _delta_of(wire.choices, usage))


def parse_answer(body: bytes, *, secrets: tuple[str, ...] = ()) -> Answer:
    """Read a whole answer. `error` is set for an error inside a 200 and for bytes that are none."""
    try:
        wire = decode_answer(body)
    except _UNREADABLE:
        return Answer(NOTHING, error=_unreadable())
    problem = _problem_inside(wire, secrets)
    if problem is not None:
        return Answer(NOTHING, error=problem)
    if wire.choices is None:
        return Answer(NOTHING, error=_unreadable())
    reasons = tuple(reason for choice in wire.choices if (reason := _reason(choice)) is not None)
    return Answer(_delta_of(wire.choices, usage_of_answer(wire)), reasons)


def _is_half(frame: SseFrame) -> bool:
    data = (frame.data or b"").strip()
    if data in (b"", DONE):
        return False
    try:
        msgspec.json.decode(data)
    except _UNREADABLE:
        return True
    return False


def _unreadable() -> UpstreamProblem:
    return problem_of(
        ProblemClass.UPSTREAM_ERROR, "The model provider sent an answer that cannot be read."
    )


def _problem_inside(wire: WireAnswer, secrets: tuple[str, ...]) -> UpstreamProblem | None:
    if wire.error:
        return classify_error_inside(wire.error, secrets=secrets)
    if isinstance(wire.x_groq, dict):
        error = cast("dict[str, Any]", wire.x_groq).get("error")
        if error:
            return classify_error_inside(error, secrets=secrets)
    # Spark says `code: 0` in good frames; DashScope's errors have a code and no choices.
    if wire.code and not wire.choices and wire.message is not None:
        return classify_error_inside(None, wire.code, wire.message, secrets=secrets)
    return None


def _head_of(wire: WireAnswer) -> ChunkHead:
    return ChunkHead(
        id=str(wire.id),
        created_s=wire.created if isinstance(wire.created, int) else 0,
        model=wire.model if isinstance(wire.model, str) else "",
    )


def _delta_of(choices: list[WireChoice], usage: Any) -> Delta:
    if len(choices) == 1:
        choice = choices[0]
        said = choice.delta or choice.message
        reason = _reason(choice)
        if said is None:
            return Delta(finish_reason=reason, usage=usage)
        return Delta(
            _content(said), _reasoning(said), _tool_text(said), finish_reason=reason, usage=usage
        )
    parts = [_delta_of([choice], None) for choice in choices]
    return Delta(
        content="".join(part.content for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        tool_text="".join(part.tool_text for part in parts),
        finish_reason=next((part.finish_reason for part in parts if part.finish_reason), None),
        usage=usage,
    )


def _reason(choice: WireChoice) -> str | None:
    """DashScope writes the string "null" while it goes on, others an empty one."""
    reason = choice.finish_reason
    return reason if isinstance(reason, str) and reason not in ("", "null") else None


def _content(said: WireMessage) -> str:
    content = said.content if isinstance(said.content, str) else _joined_parts(said.content)
    return content + said.refusal if isinstance(said.refusal, str) else content


def _joined_parts(content: object) -> str:
    if not isinstance(content, list):
        return ""
    parts = cast("list[Any]", content)
    return "".join(_text(cast("dict[str, Any]", part), "text") for part in parts if _is_dict(part))


def _reasoning(said: WireMessage) -> str:
    """One of the two names; a provider that sends both sends the same text twice."""
    if isinstance(said.reasoning_content, str) and said.reasoning_content:
        return said.reasoning_content
    return said.reasoning if isinstance(said.reasoning, str) else ""


def _tool_text(said: WireMessage) -> str:
    if said.tool_calls is None and said.function_call is None:
        return ""
    calls = cast("list[Any]", said.tool_calls) if isinstance(said.tool_calls, list) else []
    functions: list[Any] = [call.get("function") for call in calls if _is_dict(call)]
    functions.append(said.function_call)
    return "".join(
        _text(function, "name") + _text(function, "arguments")
        for function in functions
        if _is_dict(function)
    )


def _text(wire: dict[str, Any], name: str) -> str:
    value = wire.get(name)
    return value if isinstance(value, str) else ""


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)
