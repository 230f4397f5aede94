"""Where an entry lies in the log and in Kafka, as commands that move points show it."""

from __future__ import annotations

from typing import Any

import msgspec

from backend.cli.site import Site
from backend.journal.kafka_place import LogPlaces


async def place_data(site: Site, stream: str, version: int) -> dict[str, Any]:
    """Stream and version; with Kafka its topic, partition and offset too, or `pending`."""
    has_kafka = site.settings.kafka.bootstrap_servers is not None
    places = LogPlaces(site.pool, site.clock, has_kafka=has_kafka)
    data: dict[str, Any] = msgspec.to_builtins(await places.find(stream, version))
    return data
