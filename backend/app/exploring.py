"""Wires the ledger's explorer to the seals there are: in the data folder, or in Kafka."""

from __future__ import annotations

from backend.catalog.price_history import PriceHistory
from backend.explorer import CoveringSeal, Explorer, covering
from backend.kit.clock import Clock
from backend.kit.postgres import Pool
from backend.kit.settings import Settings
from projections.covering_seals import CoveringSeals
from schemas.event import Recorded


def explorer_of(settings: Settings, pool: Pool, clock: Clock) -> Explorer:
    local = CoveringSeals(settings.data_dir, clock)

    async def in_the_folder(row: Recorded) -> CoveringSeal | None:
        seal = await local.of(row)
        return None if seal is None else covering(seal)

    bootstrap = settings.kafka.bootstrap_servers
    if bootstrap is None:
        return Explorer(pool, PriceHistory(pool), in_the_folder, in_the_folder)

    async def in_kafka(row: Recorded) -> CoveringSeal | None:
        # Imported here: without Kafka its client costs 20 MB and a third of a second for nothing.
        from projections.covering_kafka_seals import CoveringKafkaSeals

        seal = await CoveringKafkaSeals(bootstrap).of(row)
        return None if seal is None else covering(seal)

    return Explorer(pool, PriceHistory(pool), in_kafka)
