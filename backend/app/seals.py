"""Wires seals: by `serve` into `<data>/seals` without Kafka, by a witness that reads Kafka
alone.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from backend.app.foundation import Foundation
from backend.app.health import HealthCheck
from backend.kit.settings import Settings


async def add_seals(base: Foundation, health: HealthCheck, stack: AsyncExitStack) -> None:
    return


async def run_witness(settings: Settings, say: object) -> None:
    return
