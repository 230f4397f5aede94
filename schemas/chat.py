"""A chat request as a client sent it, and what a provider's answer says, in one canonical form.

Unknown parameters stay the bytes they were; nothing here knows a provider or opens a socket.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from schemas.errors import BadRequest
from schemas.prompt import InputText, input_bound, input_text
from schemas.usage import Usage

CHOICES_MAX: Final = 128
OUTPUT_LIMIT_MAX: Final = 10**9
MODEL_CHARACTERS_MAX: Final = 256

MAX_TOKENS: Final = "max_tokens"
MAX_COMPLETION_TOKENS: Final = "max_completion_tokens"


class ChatRequest(msgspec.Struct, frozen=True):
    """One `POST /v1/chat/completions` body. `fields` holds every parameter, byte for byte."""

    model: str
    fields: dict[str, msgspec.Raw]
    streamed: bool
    n: int
    output_limit: int | None
    """Output tokens per choice the client allows; the larger where it gave both names."""
    output_limit_name: str | None
    """`max_completion_tokens` or `max_tokens`, as the client wrote it."""
    wants_usage: bool
    """`stream_options.include_usage` of the client: may the usage frame go to it?"""
    input_bound: int
    """Upper bound of the input tokens."""


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one frame of a streamed answer, or one whole answer, says."""

    content: str = ""
    reasoning: str = ""
    tool_text: str = ""
    """Names and argument text of tool calls."""
    finish_reason: str | None = None
    usage: Usage | None = None
    """Of the whole answer so far; the last one counts, they are never added."""

    @property
    def has_content(self) -> bool:
        """Is this a first token: content, reasoning or a tool call?"""
        return bool(self.content or self.reasoning or self.tool_text)

    @property
    def text(self) -> str:
        """Everything the model wrote here, for counting."""
        return self.content + self.reasoning + self.tool_text


class ProblemClass(StrEnum):
    """Why a provider did not answer; decides retry, cooldown and what the client is told."""

    AUTH = "auth"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    BAD_REQUEST = "bad_request"
    CONTEXT_TOO_LONG = "context_too_long"
    CONTENT_FILTER = "content_filter"
    RATE_LIMIT = "rate_limit"
    QUOTA_EXHAUSTED = "quota_exhausted"
    OVERLOADED = "overloaded"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"


class UpstreamProblem(msgspec.Struct, frozen=True):
    """A provider's refusal or failure, safe to show: no secret, no address, bounded length.

    `code`, `kind`, `status`, `sentence` and `retry_after_s` mean what they mean in `SuanpanError`.
    """

    problem: ProblemClass
    code: str
    kind: str
    status: int
    """HTTP status for the client, not the provider's."""
    sentence: str
    retry_elsewhere: bool
    """May another channel be tried, as long as nothing was sent to the client?"""
    cooldown: bool
    """Should this channel rest?"""
    retry_after_s: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole answer that was not streamed."""

    delta: Delta
    finish_reasons: tuple[str, ...] = ()
    error: UpstreamProblem | None = None

    @property
    def usage(self) -> Usage | None:
        return self.delta.usage

    @property
    def text(self) -> str:
        return self.delta.text


class _Object(msgspec.Struct, frozen=True, gc=False):
    """Any JSON object: checks the shape, keeps nothing."""


class _StreamOptions(msgspec.Struct, frozen=True, gc=False):
    include_usage: bool | None = None


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGES: Final = msgspec.json.Decoder(list[_Object])
_STRING: Final = msgspec.json.Decoder(str)
_FLAG: Final = msgspec.json.Decoder(bool | None)
_COUNT: Final = msgspec.json.Decoder(int | None)
_OPTIONS: Final = msgspec.json.Decoder(_StreamOptions | None)


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read a client's body. Raises BadRequest with one sentence that names what is wrong."""
    fields = _fields_of(body)
    model = _model_of(fields)
    _check_messages(fields)
    streamed = _streamed(fields)
    limit, limit_name = _output_limit(fields)
    return ChatRequest(
        model=model,
        fields=fields,
        streamed=streamed,
        n=_count(fields, "n", CHOICES_MAX) or 1,
        output_limit=limit,
        output_limit_name=limit_name,
        wants_usage=_wants_usage(fields),
        input_bound=_input_bound(fields),
    )


def text_of_input(request: ChatRequest) -> InputText:
    """The text of a request to count with a tokenizer when the provider reported no usage."""
    return input_text(request.fields)


def _fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        # Values kept raw are not validated as UTF-8 by the JSON decoder.
        _ = body.decode()
        return _FIELDS.decode(body)
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise BadRequest("The request body is not valid UTF-8.") from None
    except msgspec.ValidationError:
        raise BadRequest("The request body must be a JSON object.") from None
    except msgspec.DecodeError:
        raise BadRequest("The request body is not valid JSON.") from None


def _model_of(fields: dict[str, msgspec.Raw]) -> str:
    raw = fields.get("model")
    if raw is None:
        raise BadRequest("You must provide a `model` parameter.")
    model = _decoded(_STRING, raw, "`model` must be a string.")
    if not model:
        raise BadRequest("`model` must not be empty.")
    if len(model) > MODEL_CHARACTERS_MAX or not model.isprintable():
        raise BadRequest("`model` is not a valid model name.")
    return model


def _check_messages(fields: dict[str, msgspec.Raw]) -> None:
    raw = fields.get("messages")
    if raw is None:
        raise BadRequest("You must provide a `messages` parameter.")
    if not _decoded(_MESSAGES, raw, "`messages` must be a list of objects."):
        raise BadRequest("`messages` must not be empty.")


def _streamed(fields: dict[str, msgspec.Raw]) -> bool:
    raw = fields.get("stream")
    if raw is None:
        return False
    return bool(_decoded(_FLAG, raw, "`stream` must be true or false."))


def _wants_usage(fields: dict[str, msgspec.Raw]) -> bool:
    raw = fields.get("stream_options")
    if raw is None:
        return False
    sentence = "`stream_options` must be an object, and its `include_usage` true or false."
    options = _decoded(_OPTIONS, raw, sentence)
    return options is not None and options.include_usage is True


def _output_limit(fields: dict[str, msgspec.Raw]) -> tuple[int | None, str | None]:
    modern = _count(fields, MAX_COMPLETION_TOKENS, OUTPUT_LIMIT_MAX)
    classic = _count(fields, MAX_TOKENS, OUTPUT_LIMIT_MAX)
    if modern is None:
        return classic, None if classic is None else MAX_TOKENS
    return max(modern, classic or 0), MAX_COMPLETION_TOKENS


def _count(fields: dict[str, msgspec.Raw], name: str, largest: int) -> int | None:
    raw = fields.get(name)
    if raw is None:
        return None
    sentence = f"`{name}` must be a whole number from 1 to {largest}."
    value = _decoded(_COUNT, raw, sentence)
    if value is not None and not 1 <= value <= largest:
        raise BadRequest(sentence)
    return value


def _input_bound(fields: dict[str, msgspec.Raw]) -> int:
    try:
        return input_bound(fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("`messages` is not valid JSON.") from None


def _decoded(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, sentence: str) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(sentence) from None
