"""Fixtures with a real Kafka broker: one for the session, and fresh ones for tests that destroy."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.kit.kafka_admin import TopicSpec, ensure_topics
from scripts.kafka import Broker, KafkaProblem, fetch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """The broker's jars; skips where they cannot be had, unless everything is required."""
    try:
        return fetch(ROOT)
    except KafkaProblem as problem:
        if os.environ.get("SUANPAN_TEST_REQUIRE_ALL") == "1":
            pytest.fail(str(problem))
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests of the session share: use topics of your own."""
    broker = Broker(kafka_jars, tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker.bootstrap
    broker.stop()


@pytest.fixture
def own_broker(kafka_jars: Path, tmp_path: Path) -> Iterator[Broker]:
    """A running broker of the test's own, to be killed, restarted and wiped."""
    broker = Broker(kafka_jars, tmp_path / "kafka")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Names (of topics, groups) that no other test uses."""
    return lambda stem: f"{stem}.{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def own_topic(kafka_bootstrap: str, unique_name: Callable[[str], str]) -> str:
    """An empty topic with four partitions on the shared broker."""
    spec = TopicSpec(unique_name("test"), 4)
    await ensure_topics(kafka_bootstrap, 1, specs=[spec])
    return spec.name
