"""Prometheus figures of this process. Labels are few and bounded; never an id or a model's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS_S: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class RelayMetrics:
    """Calls by status, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls: Final = Counter(
            "suanpan_relay_calls", "Relay calls by HTTP status", ["status"], registry=registry
        )
        self._duration: Final = Histogram(
            "suanpan_relay_duration_seconds",
            "Duration of relay calls",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._of_status: dict[int, Counter] = {}

    def observe(self, status: int, duration_s: float) -> None:
        counter = self._of_status.get(status)
        if counter is None:
            counter = self._of_status[status] = self._calls.labels(str(status))
        counter.inc()
        self._duration.observe(duration_s)


def gauge(
    registry: CollectorRegistry, name: str, help_text: str, value: Callable[[], float]
) -> None:
    """A figure that is read when it is asked for."""
    Gauge(name, help_text, registry=registry).set_function(value)


def gauge_per_consumer(
    registry: CollectorRegistry,
    name: str,
    help_text: str,
    consumers: Iterable[str],
    value: Callable[[str], float],
) -> None:
    """One figure per consumer of the log."""
    figures = Gauge(name, help_text, ["consumer"], registry=registry)
    for consumer in consumers:
        figures.labels(consumer).set_function(partial(value, consumer))


def exposition(registry: CollectorRegistry) -> bytes:
    """All figures in Prometheus' text format."""
    return generate_latest(registry)
