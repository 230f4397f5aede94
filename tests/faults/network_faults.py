"""Faults of the network: what lies between the processes, and between them and the provider."""

from __future__ import annotations

import asyncio
from random import Random

from tests.faults.chance import asked_rounds
from tests.faults.gateway import Gateway, Road
from tests.faults.ground import Ground
from tests.faults.load import Load
from tests.faults.nemesis import Nemesis

APPEND_DEADLINE_S = 8.0
"""An append without an answer is given up after this (backend/journal/lane.py)."""


class DatabaseSlow(Nemesis):
    fault, what = "F11", "Postgres answers each message half a second late"
    rounds_short = 1
    lasts_s = (2.5, 3.5)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        for gate in (ground.gate_a, ground.gate_b):
            gate.slow(delay_s=0.25)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        for gate in (ground.gate_a, ground.gate_b):
            gate.slow()


class Split(Nemesis):
    """Some lose a server, in one of the ways in which that comes: one API or all, unless told."""

    fault = "F27"
    rounds_short = 1

    def __init__(self) -> None:
        self._gates: list[Gateway] = []

    def gates(self, ground: Ground, chance: Random) -> list[Gateway]:
        return chance.choice(([ground.gate_a], [ground.gate_a, ground.gate_b]))

    async def strike(self, gate: Gateway) -> None:
        raise NotImplementedError

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        self._gates = self.gates(ground, chance)
        for gate in self._gates:
            await self.strike(gate)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        for gate in self._gates:
            await gate.restore()


class DatabaseRefuses(Split):
    what = "API and Postgres: reset, connections refused"
    lasts_s = (0.5, 2.0)

    async def strike(self, gate: Gateway) -> None:
        await gate.cut()


class DatabaseBlackhole(Split):
    """What waited arrives after all, or is reset. The long form outlasts every deadline."""

    what = "API and Postgres: nothing passes"
    lasts_s = (3.0, 4.0) if asked_rounds() is None else (3.0, APPEND_DEADLINE_S + 3)

    async def strike(self, gate: Gateway) -> None:
        gate.take(Road.BLACKHOLE)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        late = chance.random() < 0.5
        for gate in self._gates:
            if late:
                gate.let_through()
            else:
                await gate.restore()


class DatabaseDeaf(Split):
    what = "API and Postgres: half-open, answers are lost"
    lasts_s = (1.0, 3.0)

    async def strike(self, gate: Gateway) -> None:
        gate.take(Road.DEAF)


class DatabaseMute(Split):
    what = "API and Postgres: half-open, questions are lost"
    long_only = True
    lasts_s = (1.0, 3.0)

    async def strike(self, gate: Gateway) -> None:
        gate.take(Road.MUTE)


class DatabaseThrottled(Split):
    what = "API and Postgres: 40 kB/s"
    long_only = True
    lasts_s = (1.0, 2.0)

    async def strike(self, gate: Gateway) -> None:
        gate.slow(bytes_per_s=40_000)


class KafkaSplit(Split):
    what = "publisher and projector lose Kafka: nothing passes, then reset"
    # Fails: after some splits publisher or projector has not caught up within 90 s. Not explained.
    long_only = True
    needs_kafka = True
    lasts_s = (2.0, 3.0)

    def gates(self, ground: Ground, chance: Random) -> list[Gateway]:
        return [ground.gate_kafka]

    async def strike(self, gate: Gateway) -> None:
        gate.take(Road.BLACKHOLE)


class ProviderReset(Split):
    """F20's RST, for every call under way at once."""

    fault, what = "F20", "API and provider: every connection reset"
    rounds_short = 2
    lasts_s = (0.0, 0.2)

    def gates(self, ground: Ground, chance: Random) -> list[Gateway]:
        return [ground.gate_upstream]

    async def strike(self, gate: Gateway) -> None:
        gate.reset()
        await asyncio.sleep(0)
