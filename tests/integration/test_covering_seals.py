"""Which seal vouches for an event: found in the data folder, and among the witness's in Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.journal.reader import read_all
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import connect
from projections.covering_kafka_seals import CoveringKafkaSeals
from projections.covering_seals import CoveringSeals
from projections.sealing import TableSealer
from schemas.event import START, Recorded
from scripts.kafka import Broker
from tests.integration.audited_site import make_history
from tests.integration.test_seals_from_kafka import (
    filled,
    one_more_call,
    witness_on,
    witnessed,
)

pytest_plugins = ("tests.integration.kafka_broker",)


async def log_of(database: Any) -> list[Recorded]:
    async with await connect(database.app_url, application="test") as connection:
        return [row async for page in read_all(connection, START) for row in page]


async def test_the_first_seal_of_the_folder_that_covers_an_event_is_found(
    database: Any, tmp_path: Path
) -> None:
    await make_history(database.app_url)
    clock = SystemClock()
    sealer = TableSealer(database.app_url, tmp_path, clock, SystemRandomness(), rest_factor=0)
    sealed: list[int] = []
    for _ in range(4):
        await sealer.seal_now()
        sealed.append(len(await log_of(database)))
        await one_more_call(database)
    rows, seals = await log_of(database), CoveringSeals(tmp_path, clock)
    for number, row in enumerate(rows, 1):
        expected = next((at for at, upto in enumerate(sealed, 1) if number <= upto), None)
        found = await seals.of(row)
        assert (None if found is None else found.number) == expected
    assert await CoveringSeals(tmp_path / "none", clock).of(rows[0]) is None


async def test_the_witnesss_seal_is_found_from_the_events_time_on(
    database: Any, own_broker: Broker, tmp_path: Path
) -> None:
    await make_history(database.app_url)
    await filled(database, own_broker.bootstrap)
    await witnessed(witness_on(own_broker, tmp_path), 1, 28)
    first = await log_of(database)
    await one_more_call(database)
    await filled(database, own_broker.bootstrap)
    await witnessed(witness_on(own_broker, tmp_path), 2, 30)
    await one_more_call(database)
    rows, seals = await log_of(database), CoveringKafkaSeals(own_broker.bootstrap)
    for row, number in (
        (rows[0], 1),
        (rows[len(first) - 1], 1),
        (rows[len(first)], 2),
        (rows[-1], None),
    ):
        found = await seals.of(row)
        assert (None if found is None else found.number) == number
    own_broker.stop()
    assert await seals.of(rows[0]) is None
