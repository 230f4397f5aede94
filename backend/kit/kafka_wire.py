"""The few Kafka requests that aiokafka does not have: topic ids, and changing one setting alone.

Layouts from https://kafka.apache.org/protocol; it knows bytes, never topics of ours.
"""
# aiokafka ships no types, and declares as properties what its responses set as plain numbers.
# pyright: reportMissingTypeStubs=false
# pyright: reportAssignmentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from io import BytesIO
from typing import Any, Final
from uuid import UUID

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

TOPIC_RESOURCE: Final = 2
_SET: Final = 0
_NO_TAGS: Final[dict[int, bytes]] = {}
_NO_UUID: Final = UUID(int=0)


class Uuid(AbstractType[UUID]):
    """Sixteen bytes, big-endian."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class MetadataResponseV10(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString()),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequestV10(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = MetadataResponseV10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("topic", CompactString()), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicsRequest(Request[MetadataRequestV10]):
    """The cluster's id, and id, error and partitions of the named topics. Kafka 2.8 or newer."""

    API_KEY = 3

    def __init__(self, topics: tuple[str, ...]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[MetadataRequestV10]) -> MetadataRequestV10:
        named: list[Any] = [(_NO_UUID, topic, _NO_TAGS) for topic in self._topics]
        return request_struct_class(named, False, False, False, _NO_TAGS)


class IncrementalAlterConfigsResponseV0(Response):
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "resources",
            Array(
                ("error_code", Int16),
                ("error_message", String()),
                ("resource_type", Int8),
                ("resource_name", String()),
            ),
        ),
    )


class IncrementalAlterConfigsRequestV0(RequestStruct):
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = IncrementalAlterConfigsResponseV0
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String()),
                (
                    "configs",
                    Array(("name", String()), ("operation", Int8), ("value", String())),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class SetTopicConfigsRequest(Request[IncrementalAlterConfigsRequestV0]):
    """Sets the given settings of one topic and leaves the others (AlterConfigs resets them)."""

    API_KEY = 44

    def __init__(self, topic: str, configs: dict[str, str]) -> None:
        self._topic = topic
        self._configs = configs

    def build(
        self, request_struct_class: type[IncrementalAlterConfigsRequestV0]
    ) -> IncrementalAlterConfigsRequestV0:
        settings = [(name, _SET, value) for name, value in self._configs.items()]
        return request_struct_class([(TOPIC_RESOURCE, self._topic, settings)], False)
