"""Wires what reads the log: projections on either transport, and the publisher to Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from backend.app.foundation import Foundation
from backend.app.health import HealthCheck
from backend.app.lags import LagWatch
from backend.http.metrics import gauge, gauge_per_consumer
from backend.journal.tail import TableTail
from backend.kit.postgres import Pool, make_pool
from projections.declared import find_projection, live_consumers
from projections.rebuild import RebuildRunning, places_in_kafka, rebuild
from projections.tables import ensure_tables

PROJECTOR_POOL_MAX: Final = 6
CHECK_S: Final = 15.0
"""How long a start waits for Kafka to be compared with the table; Kafka may be away."""

_log = structlog.get_logger("app.consumers")


async def add_projector(
    base: Foundation, health: HealthCheck, registry: CollectorRegistry, stack: AsyncExitStack
) -> None:
    """Projections: from Kafka where it is configured, else from the table."""
    pool = make_pool(
        base.parts.parts.database_url, application="suanpan projector", size_max=PROJECTOR_POOL_MAX
    )
    await stack.enter_async_context(pool)
    over = await ensure_tables(pool)
    if over:
        _log.info("projections start over", projections=",".join(over))
    consumers = live_consumers()
    bootstrap = base.settings.kafka.bootstrap_servers
    if bootstrap is None:
        tail = TableTail(pool, base.watch, base.randomness, consumers)
        tail.start()
        stack.push_async_callback(tail.stop)
        health.add("projections", lambda: "from the table")
        health.add_alarms("projection", lambda: tail.alarms)
    else:
        await _refill(base, pool, over)
        await _add_kafka(base, health, pool, bootstrap, stack)
    lags = LagWatch(pool, consumers)
    lags.start()
    stack.push_async_callback(lags.stop)
    health.add("lag", lags.shown)
    health.add_warnings(lags.warnings)
    names = [consumer.name for consumer in consumers]
    gauge_per_consumer(registry, "suanpan_lag_rows", "Rows not applied yet", names, lags.rows_of)
    gauge_per_consumer(
        registry, "suanpan_parked_streams", "Streams set aside", names, lags.parked_of
    )


async def _refill(base: Foundation, pool: Pool, names: Sequence[str]) -> None:
    """Fills tables that start over: their consumer groups have moved past the events they lack."""
    for name in names:
        projection = find_projection(name)
        places = places_in_kafka(projection.topics)
        try:
            done = await rebuild(pool, projection, places, base.clock, lambda _: None)
        except RebuildRunning:
            _log.info("another process rebuilds it", projection=name)
        else:
            _log.info("projection refilled", projection=name, events=done.events)


async def _add_kafka(
    base: Foundation, health: HealthCheck, pool: Pool, bootstrap: str, stack: AsyncExitStack
) -> None:
    # Imported here: without Kafka its client costs 20 MB and a third of a second for nothing.
    from backend.journal.kafka_transport import KafkaTransport

    transport = KafkaTransport(
        pool,
        bootstrap,
        base.randomness,
        live_consumers(),
        replication_factor=base.settings.kafka.replication_factor,
    )
    transport.start()
    stack.push_async_callback(transport.stop)
    health.add("projections", lambda: "from Kafka" if transport.connected else "waiting for Kafka")
    health.add_alarms("projection", lambda: transport.alarms)


async def add_publisher(
    base: Foundation, health: HealthCheck, registry: CollectorRegistry, stack: AsyncExitStack
) -> None:
    """Carries the log to Kafka; does nothing where Kafka is not configured."""
    bootstrap = base.settings.kafka.bootstrap_servers
    if bootstrap is None:
        return
    from backend.journal.publisher import Publisher

    publisher = Publisher(
        base.parts.parts.database_url,
        bootstrap,
        base.watch,
        base.clock,
        base.randomness,
        replication_factor=base.settings.kafka.replication_factor,
    )
    publisher.start()
    stack.push_async_callback(publisher.stop)
    await publisher.wait_checked(CHECK_S)

    def said() -> str:
        status = publisher.status
        return f"{status.state}: {status.reason}" if status.reason else status.state

    health.add("kafka", said)
    gauge(
        registry,
        "suanpan_publisher_rows",
        "Rows sent to Kafka",
        lambda: publisher.status.rows_sent,
    )
