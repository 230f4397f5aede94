"""Every fault that strikes a whole site under load; each leaves a row in the table."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.faults import (
    backup_faults,
    network_faults,
    process_faults,
    provider_faults,
    server_faults,
)
from tests.faults.chance import asked_rounds
from tests.faults.figures import Report
from tests.faults.ground import Ground
from tests.faults.nemesis import Nemesis, run_fault

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEMESES: tuple[type[Nemesis], ...] = (
    process_faults.KilledBeforeHold,
    process_faults.KilledAfterHold,
    process_faults.KilledMidStream,
    process_faults.KilledBeforeSettlement,
    process_faults.ProjectorKilled,
    process_faults.AskedToStop,
    process_faults.Asleep,
    process_faults.ClockJumps,
    process_faults.NoDescriptors,
    server_faults.DatabaseRestarts,
    server_faults.BackendsKilled,
    server_faults.Deadlock,
    network_faults.DatabaseSlow,
    network_faults.DatabaseRefuses,
    network_faults.DatabaseDeaf,
    network_faults.DatabaseMute,
    network_faults.DatabaseThrottled,
    network_faults.DatabaseBlackhole,
    network_faults.ProviderReset,
    provider_faults.ProviderModes,
    provider_faults.SlowProvider,
    provider_faults.HangsUp,
    provider_faults.ReadsSlowly,
    server_faults.ValkeyGone,
    server_faults.Rebuilt,
    process_faults.OffsetLost,
    server_faults.OffsetsRewound,
    network_faults.KafkaSplit,
    server_faults.KafkaKilled,
    server_faults.KafkaWiped,
    backup_faults.BackupRestored,
)
"""In an order in which the dear ones come last."""


def chosen() -> list[Any]:
    """All in the long form; in the short one those that have no cheaper test to stand in."""
    return [
        pytest.param(kind, id=f"{kind.fault}-{kind.__name__}", marks=pytest.mark.fault(kind.fault))
        for kind in NEMESES
        if asked_rounds() is not None or not kind.long_only
    ]


@pytest.mark.parametrize("make", chosen())
async def test_nothing_is_lost_or_charged_twice(
    make: type[Nemesis], ground: Ground, chance: Random, report: Report
) -> None:
    nemesis = make()
    if nemesis.needs_kafka and ground.broker is None:
        pytest.skip("no Kafka broker can be had here: it needs Java 17 and Maven once")
    await run_fault(nemesis, ground, chance, report)
