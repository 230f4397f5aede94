"""What is asked for after a model refused the output limit that we had chosen."""

from __future__ import annotations

import pytest

from schemas.chat import ProblemClass
from schemas.ids import ChannelId
from workers.providers.problems import problem_of
from workers.relay.own_limit import REMEMBERED_MAX, SAFE_TOKENS, OwnLimits, smaller_limit

BAD, LONG = ProblemClass.BAD_REQUEST, ProblemClass.CONTEXT_TOO_LONG


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("This model supports at most 16384 completion tokens, you provided 54000.", 16_384),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8_192),
        ("Range of max_tokens should be [1, 8192]", 8_192),
        ("max_tokens: 54000 > 8192, the maximum for claude-3-5-sonnet-20241022", 8_192),
        ("`max_tokens` must be less than or equal to `8192`", 8_192),
        ("max_completion_tokens is too large", SAFE_TOKENS),
        ("temperature must be at most 2", None),
        ("n must be at most 128", None),
    ],
)
def test_a_refusal_of_our_limit_names_the_models_own(sentence: str, expected: int | None) -> None:
    assert smaller_limit(problem_of(BAD, sentence), 54_000, 10) == expected


def test_a_context_shared_with_the_input_leaves_room_for_it() -> None:
    sentence = (
        "This model's maximum context length is 8192 tokens. However, you requested 54100 tokens "
        "(100 in the messages, 54000 in the completion)."
    )
    asked_of_us = 9_999  # our guess of the input is worth less than the provider's own count
    assert smaller_limit(problem_of(LONG, sentence), 54_000, asked_of_us) == 8_192 - 100 - 64
    short = "The maximum context length is 8192 tokens; reduce the completion."
    assert smaller_limit(problem_of(LONG, short), 54_000, 100) == 8_192 - 100 - 64
    assert smaller_limit(problem_of(LONG, short), 54_000, 9_000) is None


def test_other_problems_are_not_about_the_limit() -> None:
    sentence = "max_tokens exceeds 1000"
    assert smaller_limit(problem_of(ProblemClass.RATE_LIMIT, sentence), 54_000, 1) is None
    assert smaller_limit(problem_of(BAD, sentence), 500, 1) is None


def test_what_a_model_refused_is_remembered_per_channel_and_bounded() -> None:
    limits = OwnLimits()
    limits.learn(ChannelId(1), "m", 8_192)
    assert limits.within(ChannelId(1), "m", 54_000) == 8_192
    assert limits.within(ChannelId(1), "m", 1_000) == 1_000
    assert limits.within(ChannelId(2), "m", 54_000) == 54_000
    for number in range(REMEMBERED_MAX):
        limits.learn(ChannelId(3), f"m{number}", 1)
    assert limits.within(ChannelId(1), "m", 54_000) == 54_000
