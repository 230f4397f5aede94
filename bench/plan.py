"""What a load generator is asked and what it answers. No I/O."""

from __future__ import annotations

from typing import Final

import msgspec

from bench.spread import Spread

READY: Final = b"ready\n"
GO: Final = b"go\n"
REPORT_BYTES_MAX: Final = 1024 * 1024


class Target(msgspec.Struct, frozen=True):
    host: str
    port: int


class Plan(msgspec.Struct, frozen=True):
    """A load: closed loop over `parallel` connections, or open loop at `rate_per_s` over them."""

    targets: tuple[Target, ...]
    """Connections are spread over them evenly."""
    model: str
    seconds: float
    parallel: int = 1
    keys: tuple[str, ...] = ()
    """API keys, taken in turn; none: no authorization is sent."""
    events: int = 0
    """Events that a streamed answer must have; 0: the answer is not streamed."""
    rate_per_s: int = 0
    """0: closed loop, each connection calls again as soon as it is answered."""
    calls_max: int = 1_000_000
    warm_s: float = 0.3
    """Load before the measurement; streams start spread over it."""
    drain_s: float = 3.0
    """How long calls in flight may take to end when the measurement is over."""


class Report(msgspec.Struct, frozen=True):
    """What came back between "go" and the end of `seconds`."""

    seconds: float
    calls: int
    errors: int
    first_errors: tuple[str, ...]
    chunks: int
    cpu_s: float
    """The load generator's own."""
    latency: Spread
    """From the last byte sent to the last byte received."""
    first_byte: Spread
    transit: Spread
    """From the upstream's write to our read, per event."""
    open_now: int
    """Calls in flight at the end."""

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.seconds

    @property
    def chunks_per_s(self) -> float:
        return self.chunks / self.seconds
