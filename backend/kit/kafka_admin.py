"""The administrator's side of Kafka: our topics as they must be, and who the cluster is.

It changes nothing silently: what it makes or sets is logged, everything else is refused.
"""
# aiokafka ships no types: what is taken from it is named and narrowed here, for everybody else.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest

from backend.kit.kafka_wire import TOPIC_RESOURCE, SetTopicConfigsRequest, TopicsRequest
from schemas.errors import SiteProblem, Unavailable
from schemas.event import EVENT_TOPICS, SHARDS

KEYS_TOPIC: Final = "suanpan.keys"
SEALS_TOPIC: Final = "suanpan.seals"

ADMIN_TIMEOUT_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 15.0

_UNKNOWN_TOPIC: Final = 3
_FOREVER: Final = {"retention.ms": "-1", "retention.bytes": "-1"}
_COMPACTED: Final = {"max.compaction.lag.ms": "86400000"}
"""What a record supersedes, or a tombstone ends, is gone from the disk a day later: without this
the newest segment, and with it every key that should be forgotten, is never compacted."""

_log = structlog.get_logger("kit.kafka")


class KafkaUnavailable(Unavailable):
    """No broker answered in time. The site goes on without it; the log waits in Postgres."""

    code = "kafka_unavailable"


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic as it must be; nothing in it is ever deleted by age or size."""

    name: str
    partitions: int
    cleanup_policy: str = "delete"

    @property
    def kept(self) -> dict[str, str]:
        """Settings that are put right where they differ."""
        return {**_FOREVER, **_COMPACTED} if self.cleanup_policy == "compact" else _FOREVER

    def configs(self, replication_factor: int) -> dict[str, str]:
        configs = {"cleanup.policy": self.cleanup_policy, **self.kept}
        if replication_factor > 2:
            # With acks=all, an acknowledged record survives the loss of one broker.
            configs["min.insync.replicas"] = "2"
        return configs


OUR_TOPICS: Final = (
    *(TopicSpec(name, SHARDS) for name in EVENT_TOPICS),
    TopicSpec(KEYS_TOPIC, SHARDS, "compact"),
    TopicSpec(SEALS_TOPIC, 1),
)


class ClusterIdentity(msgspec.Struct, frozen=True):
    """Changes when the cluster or a topic was made anew, so that what was sent may be gone."""

    cluster_id: str
    topic_ids: dict[str, str]
    """Topic → its id; a topic that does not exist is missing."""


class Topic(msgspec.Struct, frozen=True):
    topic_id: UUID
    partitions: int


class Cluster(msgspec.Struct, frozen=True):
    cluster_id: str
    controller: int
    topics: dict[str, Topic]


async def ensure_topics(
    bootstrap: str,
    replication_factor: int,
    *,
    specs: Sequence[TopicSpec] = OUR_TOPICS,
    timeout_s: float = ADMIN_TIMEOUT_S,
) -> None:
    """Makes the topics that are missing and checks those that are there.

    A limited retention is set to "forever", and logged: it would delete the bill. The keys' topic
    is told how soon to compact. Any other difference raises SiteProblem. Raises KafkaUnavailable.
    """
    async with connected(bootstrap, timeout_s) as client:
        names = tuple(spec.name for spec in specs)
        present = (await describe_cluster(client, names)).topics
        missing = [spec for spec in specs if spec.name not in present]
        if missing:
            await _create(client, missing, replication_factor)
            present = await _appeared(client, names)
        for spec in specs:
            _check_partitions(spec, present[spec.name].partitions)
        await _check_configs(client, specs)


async def cluster_identity(
    bootstrap: str,
    *,
    topics: Sequence[str] = EVENT_TOPICS,
    timeout_s: float = ADMIN_TIMEOUT_S,
) -> ClusterIdentity:
    """Who the cluster is now.

    Raises KafkaUnavailable; SiteProblem below Kafka 2.8, which has no topic ids.
    """
    async with connected(bootstrap, timeout_s) as client:
        cluster = await describe_cluster(client, tuple(topics))
        ids = {name: str(topic.topic_id) for name, topic in cluster.topics.items()}
        return ClusterIdentity(cluster.cluster_id, ids)


async def partitions_of(
    bootstrap: str, topics: Sequence[str], *, timeout_s: float = ADMIN_TIMEOUT_S
) -> dict[str, int]:
    """How many partitions each topic has; one that does not exist is missing.

    Raises KafkaUnavailable, SiteProblem as `cluster_identity`.
    """
    async with connected(bootstrap, timeout_s) as client:
        found = (await describe_cluster(client, tuple(topics))).topics
    return {name: topic.partitions for name, topic in found.items()}


@asynccontextmanager
async def connected(bootstrap: str, timeout_s: float) -> AsyncGenerator[AIOKafkaClient]:
    client = AIOKafkaClient(
        bootstrap_servers=bootstrap,
        client_id="suanpan-admin",
        request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
    )
    async with translated(bootstrap, timeout_s):
        try:
            await client.bootstrap()
            yield client
        finally:
            await client.close()


@asynccontextmanager
async def translated(bootstrap: str, timeout_s: float | None) -> AsyncGenerator[None]:
    """A deadline, or None, and the library's errors as KafkaUnavailable."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (KafkaError, OSError, TimeoutError) as error:
        what = str(error) or type(error).__name__
        raise KafkaUnavailable(f"Kafka at {bootstrap} does not answer: {what}") from error


async def describe_cluster(client: AIOKafkaClient, topics: tuple[str, ...]) -> Cluster:
    try:
        answer: Any = await client.send(client.get_random_node(), TopicsRequest(topics))
    except NotImplementedError as error:
        raise SiteProblem("Kafka 2.8 or newer is needed: older ones have no topic ids") from error
    found: dict[str, Topic] = {}
    for code, name, topic_id, _, partitions, _, _ in answer.topics:
        if code == _UNKNOWN_TOPIC:
            continue
        if code:
            raise for_code(code)(name)
        found[name] = Topic(topic_id, len(partitions))
    return Cluster(answer.cluster_id, answer.controller_id, found)


async def _create(
    client: AIOKafkaClient, specs: Sequence[TopicSpec], replication_factor: int
) -> None:
    wanted: list[Any] = [
        (
            spec.name,
            spec.partitions,
            replication_factor,
            [],
            list(spec.configs(replication_factor).items()),
        )
        for spec in specs
    ]
    controller = (await describe_cluster(client, ())).controller
    request = CreateTopicsRequest(wanted, int(REQUEST_TIMEOUT_S * 1000), validate_only=False)
    answer: Any = await client.send(controller, request)
    for name, code, message in answer.topic_errors:
        # Another process of ours may have been faster.
        if code and code != TopicAlreadyExistsError.errno:
            raise SiteProblem(f"Kafka did not make the topic {name}: {message or for_code(code)}")
        _log.info("kafka topic made", topic=name)


async def _appeared(client: AIOKafkaClient, names: tuple[str, ...]) -> dict[str, Topic]:
    """A new topic reaches the brokers' metadata a moment later; the caller holds the deadline."""
    while True:
        found = (await describe_cluster(client, names)).topics
        if len(found) == len(names):
            return found
        await asyncio.sleep(0.05)


def _check_partitions(spec: TopicSpec, partitions: int) -> None:
    if partitions != spec.partitions:
        raise SiteProblem(
            f"Kafka topic {spec.name} has {partitions} partitions and must have "
            f"{spec.partitions}: delete it (the publisher fills it again from the database), "
            "or name another cluster in KAFKA_BOOTSTRAP_SERVERS"
        )


async def _check_configs(client: AIOKafkaClient, specs: Sequence[TopicSpec]) -> None:
    keys = ["cleanup.policy", *_FOREVER, *_COMPACTED]
    request = DescribeConfigsRequest([(TOPIC_RESOURCE, spec.name, keys) for spec in specs], False)
    answer: Any = await client.send(client.get_random_node(), request)
    for code, message, _, name, entries in answer.resources:
        if code:
            raise SiteProblem(f"Kafka topic {name} cannot be checked: {message or for_code(code)}")
        spec = next(spec for spec in specs if spec.name == name)
        values = {str(entry[0]): str(entry[1]) for entry in entries}
        if values["cleanup.policy"] != spec.cleanup_policy:
            raise SiteProblem(
                f"Kafka topic {name} has cleanup.policy={values['cleanup.policy']} and must have "
                f"{spec.cleanup_policy}: change it with kafka-configs.sh --alter"
            )
        differing = {key: values[key] for key in spec.kept if values[key] != spec.kept[key]}
        if differing:
            await _put_right(client, spec, differing)


async def _put_right(client: AIOKafkaClient, spec: TopicSpec, differing: dict[str, str]) -> None:
    wanted = {key: spec.kept[key] for key in differing}
    answer: Any = await client.send(
        client.get_random_node(), SetTopicConfigsRequest(spec.name, wanted)
    )
    for code, message, _, _ in answer.resources:
        if code:
            raise SiteProblem(
                f"Kafka topic {spec.name} would keep its records too short or too long "
                f"({differing}), and the change was refused ({message or for_code(code)}): set "
                f"{wanted} with kafka-configs.sh"
            )
    _log.warning("kafka retention changed", topic=spec.name, was=differing, now=wanted)
