"""A provider's error → one class that decides retry, failover, cooldown and the client's answer.

What a client may read is chosen here: the provider's own words only where they are about the
request itself, and never a key, an address or an account of ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import msgspec

from schemas.chat import ProblemClass, UpstreamProblem
from workers.providers.problem_rules import CLASS_OF_CODE, CLASS_OF_PHRASE, CLASS_OF_STATUS

SENTENCE_CHARACTERS_MAX: Final = 500
RETRY_AFTER_S_MAX: Final = 3_600
_BODY_BYTES_MAX: Final = 256 * 1024


class Policy(msgspec.Struct, frozen=True):
    """What a class means for us and for the client."""

    status: int
    code: str
    kind: str
    sentence: str
    retry_elsewhere: bool = True
    cooldown: bool = True
    own_words: bool = False
    """May the provider's message be shown?"""


_CHANNEL_FAULT: Final = Policy(
    502, "upstream_error", "server_error", "The model provider refused this site's request."
)
_POLICIES: Final[dict[ProblemClass, Policy]] = {
    ProblemClass.AUTH: _CHANNEL_FAULT,
    ProblemClass.PERMISSION: _CHANNEL_FAULT,
    ProblemClass.NOT_FOUND: Policy(
        502, "upstream_error", "server_error", "The model provider does not know this model."
    ),
    ProblemClass.BAD_REQUEST: Policy(
        400,
        "upstream_refused",
        "invalid_request_error",
        "The model provider refused this request as invalid.",
        retry_elsewhere=False,
        cooldown=False,
        own_words=True,
    ),
    ProblemClass.CONTEXT_TOO_LONG: Policy(
        400,
        "context_length_exceeded",
        "invalid_request_error",
        "The request is longer than this model's context.",
        retry_elsewhere=False,
        cooldown=False,
        own_words=True,
    ),
    ProblemClass.CONTENT_FILTER: Policy(
        400,
        "content_filter",
        "invalid_request_error",
        "The model provider's content filter refused this request.",
        retry_elsewhere=False,
        cooldown=False,
        own_words=True,
    ),
    ProblemClass.RATE_LIMIT: Policy(
        429, "rate_limit_exceeded", "rate_limit_error", "The model provider is at its rate limit."
    ),
    ProblemClass.QUOTA_EXHAUSTED: Policy(
        503, "upstream_unavailable", "server_error", "The model provider is not available."
    ),
    ProblemClass.OVERLOADED: Policy(
        503, "upstream_unavailable", "server_error", "The model provider is overloaded."
    ),
    ProblemClass.UPSTREAM_ERROR: Policy(
        502, "upstream_error", "server_error", "The model provider failed to answer."
    ),
    ProblemClass.TIMEOUT: Policy(
        504, "upstream_timeout", "server_error", "The model provider did not answer in time."
    ),
}
_STATUSES_KEPT: Final = frozenset({400, 413, 415, 422})

_REDACTIONS: Final = (
    (re.compile(r"\b(?:https?|wss?)://\S+", re.IGNORECASE), "[address]"),
    (re.compile(r"\bBearer\s+\S+", re.IGNORECASE), "[key]"),
    (re.compile(r"\b(?:sk|gsk|pk|ak|xai)[-_][\w*.\-]{4,}", re.IGNORECASE), "[key]"),
    (re.compile(r"\b(?:org|proj|key)[-_]\w{8,}", re.IGNORECASE), "[key]"),
    (re.compile(r"\beyJ[\w\-]+\.[\w\-.]+"), "[key]"),
    (re.compile(r"\b[A-Za-z0-9_\-]{32,}\b"), "[key]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "[address]"),
    (re.compile(r"\blocalhost(?::\d+)?\b", re.IGNORECASE), "[address]"),
    (
        re.compile(
            r"\b(?:[\w\-]+\.)+(?:com|cn|net|org|io|ai|dev|app|cloud|local|internal|lan)(?::\d+)?\b",
            re.IGNORECASE,
        ),
        "[address]",
    ),
)
_TRY_AGAIN: Final = re.compile(r"try again in (\d+(?:\.\d+)?)\s*(ms|s|m)\b", re.IGNORECASE)
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_ERROR_MESSAGE_NAMES: Final = ("message", "msg", "err", "error_msg", "error")


class _Said(msgspec.Struct, frozen=True):
    """What a provider's error body says, once found."""

    message: str = ""
    codes: tuple[str, ...] = ()
    """From the most to the least specific, lower case."""


def classify_error(
    status: int, headers: Mapping[str, str], body: bytes, *, secrets: tuple[str, ...] = ()
) -> UpstreamProblem:
    """Read an answer with an error status. `secrets` are kept out of the sentence, always."""
    said = _said_in_body(body)
    problem = _class_of(said, status)
    return _problem(problem, said, status, _retry_after_s(headers, said.message), secrets)


def classify_error_inside(
    error: object, code: object = None, message: object = None, *, secrets: tuple[str, ...] = ()
) -> UpstreamProblem:
    """Read an error object that came inside a 200 answer or stream, or a top-level code."""
    wire = error if error is not None else {"code": code, "message": message}
    said = _said(wire)
    status = _status_said(wire)
    problem = _class_of(said, status)
    return _problem(problem, said, status, _retry_after_s({}, said.message), secrets)


def problem_of(
    problem: ProblemClass, sentence: str = "", retry_after_s: int | None = None
) -> UpstreamProblem:
    """A problem that we saw ourselves: a timeout, a cut connection, bytes that are no answer."""
    policy = _POLICIES[problem]
    return UpstreamProblem(
        problem=problem,
        code=policy.code,
        kind=policy.kind,
        status=policy.status,
        sentence=sentence or policy.sentence,
        retry_elsewhere=policy.retry_elsewhere,
        cooldown=policy.cooldown,
        retry_after_s=retry_after_s,
    )


def redacted(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` on one line without keys and addresses, at most SENTENCE_CHARACTERS_MAX long."""
    text = " ".join(text[: 4 * SENTENCE_CHARACTERS_MAX].split())
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[key]")
    for pattern, replacement in _REDACTIONS:
        text = pattern.sub(replacement, text)
    text = "".join(character for character in text if character.isprintable())
    if len(text) > SENTENCE_CHARACTERS_MAX:
        text = text[: SENTENCE_CHARACTERS_MAX - 1] + "…"
    return text


def _problem(
    problem: ProblemClass,
    said: _Said,
    status: int,
    retry_after_s: int | None,
    secrets: tuple[str, ...],
) -> UpstreamProblem:
    policy = _POLICIES[problem]
    words = redacted(said.message, secrets) if policy.own_words else ""
    made = problem_of(problem, words, retry_after_s)
    if policy.own_words and status in _STATUSES_KEPT:
        return msgspec.structs.replace(made, status=status)
    return made


def _class_of(said: _Said, status: int) -> ProblemClass:
    for code in said.codes:
        found = CLASS_OF_CODE.get(code)
        if found is not None:
            return found
    for statuses, phrase, problem in CLASS_OF_PHRASE:
        if status in statuses and phrase.search(said.message):
            return problem
    return CLASS_OF_STATUS.get(status, ProblemClass.UPSTREAM_ERROR)


def _said_in_body(body: bytes) -> _Said:
    if len(body) > _BODY_BYTES_MAX:
        return _Said()
    try:
        wire = cast("object", msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # A proxy's HTML page: nothing in it is for a client.
        return _Said()
    if not isinstance(wire, dict):
        return _said(wire)
    outer = cast("dict[str, Any]", wire)
    inner: object = outer.get("error")
    return _said(cast("object", inner) if isinstance(inner, dict) else outer)


def _said(wire: object) -> _Said:
    if isinstance(wire, str):
        return _Said(wire)
    if not isinstance(wire, dict):
        return _Said()
    error = cast("dict[str, Any]", wire)
    message = next(
        (error[name] for name in _ERROR_MESSAGE_NAMES if isinstance(error.get(name), str)), ""
    )
    inner = error.get("innererror")
    details = error.get("details")
    codes = [
        _name(inner, "code"),
        _name(details, "error_code"),
        _name(error, "code"),
        _name(error, "type"),
    ]
    return _Said(message, tuple(code for code in codes if code))


def _name(wire: object, name: str) -> str:
    """A code in lower case; numbers are codes too (Zhipu, Spark), true and objects are not."""
    if not isinstance(wire, dict):
        return ""
    value = cast("dict[str, Any]", wire).get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).lower()


def _status_said(wire: object) -> int:
    """The HTTP status an error object claims (`{"error":{"code":429}}`); 0 where it claims none."""
    code = _name(wire, "code")
    return int(code) if len(code) == 3 and code.isdecimal() else 0


def _retry_after_s(headers: Mapping[str, str], message: str) -> int | None:
    """Whole seconds to wait, from 1 to RETRY_AFTER_S_MAX; None where nobody said."""
    wait_s = _seconds(headers.get("retry-after-ms"), 0.001)
    if wait_s is None:
        wait_s = _seconds(headers.get("retry-after"), 1.0)
    if wait_s is None:
        wait_s = _seconds_until(headers.get("retry-after"), headers.get("date"))
    if wait_s is None and (found := _TRY_AGAIN.search(message[:4_096])):
        wait_s = float(found[1]) * _UNIT_S[found[2].lower()]
    if wait_s is None:
        return None
    return max(1, min(RETRY_AFTER_S_MAX, math.ceil(wait_s)))


def _seconds(text: str | None, unit_s: float) -> float | None:
    if text is None or not re.fullmatch(r"\s*\d{1,12}(?:\.\d{1,6})?\s*", text):
        return None
    return float(text) * unit_s


def _seconds_until(date: str | None, now: str | None) -> float | None:
    """RFC 9110 allows a date; the provider's own clock (`Date`) is what it is measured by."""
    if date is None or now is None:
        return None
    try:
        return (parsedate_to_datetime(date) - parsedate_to_datetime(now)).total_seconds()
    except (TypeError, ValueError):
        return None
