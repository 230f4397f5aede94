"""Compares Kafka with the table before anything is sent: in step, to be filled again, or ahead.

It only looks; what to do about it is the publisher's.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import msgspec

from backend.journal.publisher_place import Head, Place, find_absent
from backend.kit.kafka import read_topics, recorded_of
from backend.kit.kafka_admin import KEYS_TOPIC, ClusterIdentity, cluster_identity
from backend.kit.postgres import Connection
from schemas.event import EVENT_TOPICS, Recorded

FILLED_TOPICS: Final = (*EVENT_TOPICS, KEYS_TOPIC)


class InStep(msgspec.Struct, frozen=True):
    """Kafka has all that was remembered, and nothing that the table lacks."""


class Refill(msgspec.Struct, frozen=True):
    """Records are gone, or it is another cluster: send everything again from the start."""

    reason: str


class Ahead(msgspec.Struct, frozen=True):
    """Kafka has an event that the table lacks."""

    stream: str
    version: int
    forked: bool
    """The table has another event at this very version."""


Verdict = InStep | Refill | Ahead


async def identity_of(bootstrap: str) -> ClusterIdentity:
    """The cluster and the topics that the publisher fills. Raises KafkaUnavailable."""
    return await cluster_identity(bootstrap, topics=FILLED_TOPICS)


async def compare(
    connection: Connection, bootstrap: str, place: Place, identity: ClusterIdentity
) -> Verdict:
    """Reads from the remembered records on, or all of Kafka where those are not to be found.

    Raises KafkaUnavailable, MalformedRecord and psycopg errors.
    """
    if identity == place.identity:
        verdict = await _compare_from(connection, bootstrap, place.heads)
        if not isinstance(verdict, Refill):
            return verdict
        reason = verdict.reason
    elif place.identity.cluster_id:
        reason = "the cluster or a topic was made anew"
    else:
        reason = "Kafka was never filled from this database"
    everything = await _compare_from(connection, bootstrap, {})
    return everything if isinstance(everything, Ahead) else Refill(reason)


async def _compare_from(
    connection: Connection, bootstrap: str, heads: dict[tuple[str, int], Head]
) -> Verdict:
    """The remembered record itself is read again: it must be there, with the same hash."""
    unseen = set(heads)
    after = {place: head.offset - 1 for place, head in heads.items()}
    async with aclosing(read_topics(bootstrap, EVENT_TOPICS, after=after)) as batches:
        async for batch in batches:
            rows: list[Recorded] = []
            for record in batch:
                row = recorded_of(record)
                key = (record.topic, record.partition)
                if key in unseen:
                    unseen.discard(key)
                    if (record.offset, row.hash) != (heads[key].offset, heads[key].hash):
                        return Refill(f"{key[0]}/{key[1]} has lost its record {heads[key].offset}")
                rows.append(row)
            absent = await find_absent(connection, rows)
            if absent is not None:
                return Ahead(*absent)
    if unseen:
        topic, shard = min(unseen)
        return Refill(f"{topic}/{shard} has lost its last records")
    return InStep()
