"""Providers' errors: the class, what the client is told, and what it never learns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.chat import ProblemClass as P
from schemas.chat import UpstreamProblem
from workers.providers.problems import classify_error, problem_of, redacted


def problem(status: int, error: Any = None, **headers: str) -> UpstreamProblem:
    body = b"" if error is None else json.dumps({"error": error}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify_error(status, named, body)


@pytest.mark.parametrize(
    ("status", "error", "expected", "client_status"),
    [
        (400, {"message": "bad", "code": None}, P.BAD_REQUEST, 400),
        (422, {"message": "bad"}, P.BAD_REQUEST, 422),
        (413, {"message": "big"}, P.BAD_REQUEST, 413),
        (400, {"message": "m", "code": "context_length_exceeded"}, P.CONTEXT_TOO_LONG, 400),
        (400, {"message": "maximum context length is 10"}, P.CONTEXT_TOO_LONG, 400),
        (400, {"message": "m", "code": "content_policy_violation"}, P.CONTENT_FILTER, 400),
        (
            400,
            {"code": "other", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
            P.CONTENT_FILTER,
            400,
        ),
        (401, {"code": "invalid_api_key"}, P.AUTH, 502),
        (401, None, P.AUTH, 502),
        (403, {"message": "region"}, P.PERMISSION, 502),
        (403, {"code": "AccountOverdueError"}, P.QUOTA_EXHAUSTED, 503),
        (402, None, P.QUOTA_EXHAUSTED, 503),
        (404, {"code": "model_not_found"}, P.NOT_FOUND, 502),
        (404, {"code": "DeploymentNotFound"}, P.NOT_FOUND, 502),
        (408, None, P.TIMEOUT, 504),
        (429, {"code": "rate_limit_exceeded", "type": "tokens"}, P.RATE_LIMIT, 429),
        (429, {"type": "insufficient_quota", "code": "odd"}, P.QUOTA_EXHAUSTED, 503),
        (429, {"message": "insufficient account balance"}, P.QUOTA_EXHAUSTED, 503),
        (429, {"code": "1113", "message": "欠费"}, P.QUOTA_EXHAUSTED, 503),
        (429, None, P.RATE_LIMIT, 429),
        (498, None, P.OVERLOADED, 503),
        (500, {"message": "insufficient balance of luck"}, P.UPSTREAM_ERROR, 502),
        (302, None, P.UPSTREAM_ERROR, 502),
        (503, {"code": "slow_down"}, P.OVERLOADED, 503),
        (529, {"type": "overloaded_error"}, P.OVERLOADED, 503),
        (504, None, P.TIMEOUT, 504),
    ],
)
def test_each_error_has_its_class_and_its_status_for_the_client(
    status: int, error: Any, expected: P, client_status: int
) -> None:
    made = problem(status, error)
    assert (made.problem, made.status) == (expected, client_status)
    assert made.sentence


def test_what_is_wrong_with_the_request_is_not_tried_elsewhere_and_cools_nothing() -> None:
    for expected in P:
        made = problem_of(expected)
        about_request = expected in (P.BAD_REQUEST, P.CONTEXT_TOO_LONG, P.CONTENT_FILTER)
        assert made.retry_elsewhere is not about_request
        assert made.cooldown is not about_request


def test_a_client_cannot_talk_a_channel_into_a_cooldown() -> None:
    made = problem(400, {"message": "Invalid value: 'insufficient quota balance'"})
    assert (made.problem, made.cooldown) == (P.BAD_REQUEST, False)


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry_after": "7"}, "", 7),
        ({"retry_after": "0.2"}, "", 1),
        ({"retry_after": "0"}, "", 1),
        ({"retry_after": "99999999"}, "", 3_600),
        ({"retry_after_ms": "1500"}, "", 2),
        (
            {
                "retry_after": "Fri, 20 Nov 2026 08:00:30 GMT",
                "date": "Fri, 20 Nov 2026 08:00:00 GMT",
            },
            "",
            30,
        ),
        ({"retry_after": "Fri, 20 Nov 2026 08:00:30 GMT"}, "", None),
        ({"retry_after": "soon"}, "", None),
        ({"retry_after": "-5"}, "", None),
        ({}, "Please try again in 2.5s.", 3),
        ({}, "Please try again in 250ms.", 1),
        ({}, "", None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    headers: dict[str, str], message: str, seconds: int | None
) -> None:
    assert problem(429, {"message": message}, **headers).retry_after_s == seconds


def test_own_words_are_shown_only_where_they_are_about_the_request() -> None:
    assert (
        problem(400, {"message": "temperature must be ≤ 2"}).sentence == "temperature must be ≤ 2"
    )
    for status in (401, 403, 404, 429, 500, 503):
        assert "tell-tale" not in problem(status, {"message": "tell-tale"}).sentence


@pytest.mark.parametrize(
    "leak",
    [
        "sk-abcdef1234567890",
        "sk-proj-ab**********yz",
        "gsk_abcdefghijkl",
        "https://internal.example.com/v1?key=1",
        "api.provider.com",
        "10.0.0.7:8080",
        "localhost:11434",
        "Bearer abc.def",
        "org-AbCdEf123456",
        "0123456789abcdef0123456789abcdef",
        "eyJhbGciOi.eyJzdWIi.sig",
    ],
)
def test_keys_and_addresses_never_reach_the_client(leak: str) -> None:
    sentence = problem(400, {"message": f"Wrong: {leak} was refused"}).sentence
    assert leak not in sentence
    assert sentence.startswith("Wrong: [")


def test_the_channels_own_secret_is_cut_out_whatever_it_looks_like() -> None:
    body = json.dumps({"error": {"message": "key 's3cret word' is odd"}}).encode()
    made = classify_error(400, {}, body, secrets=("s3cret word", ""))
    assert made.sentence == "key '[key]' is odd"


def test_ordinary_sentences_survive_redaction() -> None:
    text = "Invalid value for messages.0.content: use gpt-4.1 (e.g. max_tokens 4.5), see n=129."
    assert redacted(text) == text


def test_a_long_or_multi_line_message_becomes_one_bounded_line() -> None:
    sentence = redacted("a\n\tb\x00 " + "long words " * 1_000)
    assert sentence.startswith("a b long")
    assert len(sentence) <= 500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502 at https://internal</html>",
        b"[1]",
        b'{"error":5}',
        b"\xff\xfe",
        b"[" * 9_000,
        b'{"message":"m"}' + b" " * 300_000,
    ],
)
def test_bodies_that_are_no_error_object_are_classed_by_status(body: bytes) -> None:
    made = classify_error(502, {}, body)
    assert made.problem is P.UPSTREAM_ERROR
    assert "internal" not in made.sentence


@pytest.mark.parametrize(
    "body",
    [
        {"code": "InvalidParameter", "message": "Range of input length should be [1, 6000]"},
        {"msg": "too many tokens"},
        {"error": "prompt is too long"},
    ],
)
def test_messages_are_found_under_the_names_providers_use(body: Any) -> None:
    assert classify_error(400, {}, json.dumps(body).encode()).problem is P.CONTEXT_TOO_LONG
