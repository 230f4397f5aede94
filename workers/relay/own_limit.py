"""An output limit that we chose and the model finds too large: what to ask for instead.

A client that named no limit must not be refused for ours. Pure but for what it remembers.
"""

from __future__ import annotations

import re
from typing import Final

from schemas.chat import ProblemClass, UpstreamProblem
from schemas.ids import ChannelId

SAFE_TOKENS: Final = 4_096
"""What any chat model writes, where its refusal names no number."""
TEMPLATE_TOKENS: Final = 64
"""Room for what a chat template adds to the input, where input and output share a context."""
REMEMBERED_MAX: Final = 4_096

_ABOUT_OUTPUT: Final = re.compile(r"max_(?:completion_|output_)?tokens|completion", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(?<![\w.\-])\d{3,7}(?![\w\-])")


def smaller_limit(problem: UpstreamProblem, limit: int, input_tokens: int) -> int | None:
    """The limit to try after `limit` was refused; None where the refusal is about something else.

    The largest number that the provider names below ours is its own limit ("supports at most
    16384 completion tokens, whereas you provided 54000", "valid range is [1, 8192]"); where it is
    the context's, the input has to fit beside it.
    """
    about = problem.problem
    if about not in (ProblemClass.BAD_REQUEST, ProblemClass.CONTEXT_TOO_LONG):
        return None
    if not _ABOUT_OUTPUT.search(problem.sentence):
        return None
    numbers = [int(text) for text in _NUMBER.findall(problem.sentence)]
    found = max((number for number in numbers if number < limit), default=SAFE_TOKENS)
    if about is ProblemClass.CONTEXT_TOO_LONG:
        # "you requested 54100 tokens": ours and the input's, as the provider counted it.
        both = min((number for number in numbers if number > limit), default=limit + input_tokens)
        found -= both - limit + TEMPLATE_TOKENS
    return found if 0 < found < limit else None


class OwnLimits:
    """What models have refused, so that each is asked too much once; one per process."""

    def __init__(self) -> None:
        self._known: Final[dict[tuple[ChannelId, str], int]] = {}

    def within(self, channel: ChannelId, model: str, limit: int) -> int:
        """`limit`, or what this model is known to take if that is less."""
        return min(limit, self._known.get((channel, model), limit))

    def learn(self, channel: ChannelId, model: str, limit: int) -> None:
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        self._known[(channel, model)] = limit
