"""Which channel is tried first, second, third. Pure: chance, the clock and the state come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from schemas.ids import ChannelId

COOLDOWN_FIRST_S: Final = 5.0
COOLDOWN_MAX_S: Final = 300.0
RETRY_AFTER_MAX_S: Final = 3_600.0
_DOUBLINGS_MAX: Final = 16


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A channel that serves the asked model."""

    channel: ChannelId
    priority: int = 0
    """Higher is tried first."""
    weight: int = 1
    """Share among channels of one priority; below 1 counts as 1."""


def plan_channels(
    candidates: Sequence[Candidate],
    *,
    draw: Callable[[], float],
    cooling_until_s: Mapping[ChannelId, float] | None = None,
) -> tuple[ChannelId, ...]:
    """The order in which to try `candidates`.

    By priority, and within one by chance in proportion to the weights, without replacement
    (Efraimidis and Spirakis 2006: sort by -ln(u)/w). Channels that cool down come last, the first
    to recover first: where all of them cool, that one is tried. `draw` gives numbers in [0, 1).
    """
    if len(candidates) == 1:
        return (candidates[0].channel,)
    cooling = cooling_until_s or {}
    ready = [candidate for candidate in candidates if candidate.channel not in cooling]
    resting = [candidate for candidate in candidates if candidate.channel in cooling]
    drawn = [
        (-candidate.priority, _ticket(draw(), candidate.weight), candidate.channel)
        for candidate in ready
    ]
    drawn.sort()
    resting.sort(key=lambda candidate: (cooling[candidate.channel], -candidate.priority))
    return (*(channel for _, _, channel in drawn), *(candidate.channel for candidate in resting))


class _Rest:
    """One channel's failures in a row and the end of its cooldown."""

    __slots__ = ("failed_s", "failures", "until_s")

    def __init__(self) -> None:
        self.failures = 0
        self.failed_s = -math.inf
        self.until_s = -math.inf


class Cooldowns:
    """Channels that failed lately, in this process. Times are of one monotonic clock, seconds."""

    def __init__(
        self, *, first_s: float = COOLDOWN_FIRST_S, longest_s: float = COOLDOWN_MAX_S
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._rests: dict[ChannelId, _Rest] = {}

    def failed(
        self,
        channel: ChannelId,
        *,
        now_s: float,
        started_s: float,
        retry_after_s: float | None = None,
    ) -> float:
        """A call that began at `started_s` failed; returns when the channel may be tried again.

        Each failure in a row doubles the rest, up to the longest. Calls that were under way when
        the channel failed before are the same incident: a hundred of them do not double it a
        hundred times. A provider's own Retry-After is honoured where it asks for more.
        """
        rest = self._rests.setdefault(channel, _Rest())
        if started_s >= rest.failed_s:
            rest.failures += 1
            rest.failed_s = now_s
        doublings = min(rest.failures - 1, _DOUBLINGS_MAX)
        pause_s = min(self._first_s * 2.0**doublings, self._longest_s)
        if retry_after_s is not None:
            pause_s = max(pause_s, min(retry_after_s, RETRY_AFTER_MAX_S))
        rest.until_s = max(rest.until_s, now_s + pause_s)
        return rest.until_s

    def succeeded(self, channel: ChannelId) -> None:
        """The channel answered: it is as good as new."""
        if self._rests:
            self._rests.pop(channel, None)

    def cooling(self, now_s: float) -> Mapping[ChannelId, float]:
        """Channels that rest now, and until when."""
        if not self._rests:
            return {}
        return {
            channel: rest.until_s for channel, rest in self._rests.items() if rest.until_s > now_s
        }

    def keep_only(self, channels: frozenset[ChannelId]) -> None:
        """Forget channels that no longer exist, so that the state stays bounded."""
        for channel in self._rests.keys() - channels:
            del self._rests[channel]


def _ticket(chance: float, weight: int) -> float:
    """Smaller comes first. 1 - chance lies in (0, 1]: its logarithm exists."""
    return -math.log(1.0 - chance) / max(weight, 1)
