"""Wires seals: `serve` seals the table into `<data>/seals`; with Kafka, a witness reads it
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from backend.app.foundation import Foundation
from backend.app.health import HealthCheck
from backend.app.serving import address_of, bound_socket, serve, stop_on_signals
from backend.http.site import Health, Site, make_probes
from backend.kit.clock import Clock, Randomness, SystemClock, SystemRandomness
from backend.kit.private_files import make_data_dir
from backend.kit.settings import Settings
from schemas.errors import SiteProblem

# The witness and its Kafka client are imported where Kafka is configured: without it they would
# cost 20 MB and a third of a second for nothing.


async def add_seals(base: Foundation, health: HealthCheck, stack: AsyncExitStack) -> None:
    """Seals what the other roles of this process write."""
    data_dir, clock, randomness = base.settings.data_dir, base.clock, base.randomness
    bootstrap = base.settings.kafka.bootstrap_servers
    if bootstrap is None:
        from projections.sealing import TableSealer

        sealer = TableSealer(base.parts.parts.database_url, data_dir, clock, randomness)
        sealer.start()
        stack.push_async_callback(sealer.stop)
        health.add("seals", lambda: _shown(sealer.health()))
        health.add_alarms("seals", lambda: _alarms(sealer.health().alarms))
        return
    said, alarms = _witness(bootstrap, base.settings, clock, randomness, stack)
    health.add("seals", said)
    health.add_alarms("seals", alarms)


async def run_witness(settings: Settings, say: Callable[[str], None]) -> None:
    """The role that has rights to nothing but Kafka. Raises SiteProblem where there is none."""
    bootstrap = settings.kafka.bootstrap_servers
    if bootstrap is None:
        raise SiteProblem("The witness reads Kafka: set KAFKA_BOOTSTRAP_SERVERS.")
    make_data_dir(settings.data_dir)
    stop = stop_on_signals()
    bound = bound_socket(settings.host, settings.port)
    async with AsyncExitStack() as stack:
        said, alarms = _witness(bootstrap, settings, SystemClock(), SystemRandomness(), stack)

        async def health() -> Health:
            parts: dict[str, Any] = said()
            why = tuple(alarms().values()) or (() if parts["ready"] else (parts["why_not"],))
            return Health("not ready" if why else "ready", "witness", why, (), {"seals": parts})

        say(f"suanpan witness is ready at {address_of(bound)}")
        probes = make_probes(Site("witness", health, CollectorRegistry()))
        await serve(probes, bound, stop, settings.http)


def _witness(
    bootstrap: str, settings: Settings, clock: Clock, randomness: Randomness, stack: AsyncExitStack
) -> tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, str]]]:
    from projections.witness import Witness

    witness = Witness(bootstrap, settings.data_dir, clock, randomness)
    witness.start()
    stack.push_async_callback(witness.stop)
    return lambda: _shown(witness.health()), lambda: _alarms(witness.health().alarms)


def _shown(health: object) -> dict[str, Any]:
    """What a person wants of it; the places per partition are too many."""
    shown: dict[str, Any] = msgspec.to_builtins(health)
    shown.pop("places", None)
    return shown


def _alarms(alarms: tuple[str, ...]) -> dict[str, str]:
    return {f"alarm {number}": reason for number, reason in enumerate(alarms, 1)}
