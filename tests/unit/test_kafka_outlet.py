"""Whatever Kafka's client fails with while several partitions are written is KafkaUnavailable."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.errors import NotLeaderForPartitionError

from backend.kit.kafka_admin import KafkaUnavailable
from backend.kit.kafka_outlet import Outgoing, Outlet


class FailingClient:
    """As aiokafka's producer while the leaders of its partitions move."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def create_batch(self) -> Any:
        return self

    def append(self, **_: object) -> bool:
        return True

    def close(self) -> None:
        pass

    def record_count(self) -> int:
        return 1

    async def send_batch(self, *_: object, **__: object) -> object:
        raise self._error


RECORDS = [Outgoing("suanpan.ledger", partition, b"k", b"v", []) for partition in range(3)]


async def test_failures_of_several_partitions_are_one_kafka_unavailable() -> None:
    outlet = Outlet("127.0.0.1:1", FailingClient(NotLeaderForPartitionError()))  # type: ignore[arg-type]
    with pytest.raises(KafkaUnavailable):
        await outlet.send(RECORDS, timeout_s=1)


async def test_a_defect_of_ours_is_not_taken_for_kafkas() -> None:
    outlet = Outlet("127.0.0.1:1", FailingClient(KeyError("defect")))  # type: ignore[arg-type]
    with pytest.raises(BaseExceptionGroup) as failure:
        await outlet.send(RECORDS, timeout_s=1)
    assert failure.value.subgroup(KeyError) is not None
