"""Time and chance as ports: whatever decides gets them as arguments.

Must not be reached for inside a decision or a fold.
"""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    def now_us(self) -> int:
        """Wall time: microseconds since 1970 UTC. It may step back."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed point: for durations and deadlines only."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()


class Randomness(Protocol):
    def bits(self, n: int) -> int:
        """An unguessable int in [0, 2**n)."""
        ...

    def bytes(self, n: int) -> bytes:
        """`n` unguessable bytes."""
        ...


class SystemRandomness:
    """The kernel's generator, never buffered here: a buffer copied by fork() repeats nonces.

    One call costs about 0.3 µs, so a UUID per request needs nothing faster.
    """

    def bits(self, n: int) -> int:
        size, spare = (n + 7) // 8, -n % 8
        return int.from_bytes(os.urandom(size), "big") >> spare

    def bytes(self, n: int) -> bytes:
        return os.urandom(n)
