"""Finds the first seal of the witness that covers an event: in Kafka, from the event on."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

import structlog

from backend.journal.seal import BrokenSeal, Seal, decode_seal
from backend.kit.kafka import read_since
from backend.kit.kafka_admin import SEALS_TOPIC, KafkaUnavailable
from projections.covering_seals import covers
from schemas.errors import SiteProblem
from schemas.event import Recorded

SKEW_MS: Final = 300_000
"""By so much the clocks of who decided and of the witness may differ."""
TIMEOUT_S: Final = 5.0

_log = structlog.get_logger("projections.covering_kafka_seals")


class CoveringKafkaSeals:
    """A look-up opens a connection of its own: for one event at a time, not for lists."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap: Final = bootstrap

    async def of(self, row: Recorded) -> Seal | None:
        """None where no seal covers the event yet, or Kafka does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._find(row)
        except (KafkaUnavailable, SiteProblem, BrokenSeal, TimeoutError) as error:
            _log.warning("no seal is shown", error=type(error).__name__)
            return None

    async def _find(self, row: Recorded) -> Seal | None:
        since_ms = max(0, row.at_us // 1_000 - SKEW_MS)
        async with aclosing(read_since(self._bootstrap, SEALS_TOPIC, since_ms)) as batches:
            async for batch in batches:
                for record in batch:
                    seal = decode_seal(record.value or b"")
                    if covers(seal, row):
                        return seal
        return None
