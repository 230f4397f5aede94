"""The witness: reads the topics and nothing else, verifies the chains, and signs what it saw.

It has no rights to the database, so that table and topic check each other.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backend.journal.seal import (
    NO_SITE,
    BrokenSeal,
    HeadTree,
    Place,
    Seal,
    decode_seal,
    encode_seal,
    make_seal,
    verify_follows,
    verify_signature,
)
from backend.kit.clock import Clock, Randomness
from backend.kit.kafka import MalformedRecord, Record, read_topics, recorded_of
from backend.kit.kafka_admin import SEALS_TOPIC, KafkaUnavailable, cluster_identity
from backend.kit.kafka_follow import Follower, follow
from backend.kit.kafka_outlet import Outgoing, outlet
from backend.kit.private_files import make_data_dir, write_private
from projections.sealed_files import load_or_make_key
from projections.sealed_log import SealedLog
from projections.verifying import Verifier
from schemas.errors import SiteProblem
from schemas.event import EVENT_TOPICS, START, Position, Recorded

SEAL_EVERY_S: Final = 60.0
POLL_S: Final = 1.0
SEND_TIMEOUT_S: Final = 30.0
MARKS_KEPT: Final = 1_024
"""Versions per stream for which a fork can be told from a duplicate."""
BACKOFF_S: Final = (1.0, 5.0, 20.0)
ALARMS_KEPT: Final = 20
STATE_FILE: Final = "witness.json"

_Part = tuple[str, int]
_log = structlog.get_logger("projections.witness")


class WitnessHealth(msgspec.Struct, frozen=True):
    """`alarms`: why nothing is sealed any more. `behind`: records not read yet, as last counted."""

    ready: bool
    why_not: str
    events: int
    streams: int
    seals: int
    sealed_at_us: int | None
    behind: int
    places: tuple[Place, ...]
    alarms: tuple[str, ...]


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where reading goes on. `seal` vouches for `heads` and `places`; `offsets` belong to them."""

    seal: Seal
    heads: list[tuple[str, int, bytes]]
    offsets: list[tuple[str, int, int]]
    topic_ids: dict[str, str]


class Witness:
    """`start` and `stop` once; `health` at any time."""

    def __init__(
        self,
        bootstrap: str,
        data_dir: Path,
        clock: Clock,
        randomness: Randomness,
        *,
        every_s: float = SEAL_EVERY_S,
    ) -> None:
        self._bootstrap: Final = bootstrap
        self._data_dir: Final = data_dir
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._every_s: Final = every_s
        self._task: asyncio.Task[None] | None = None
        self._reading: _Reading | None = None
        self._why_not = "it has not reached Kafka yet"
        self._behind = 0
        self._sealed_at_us: int | None = None
        self._alarms: list[str] = []

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What was not sealed is read again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> WitnessHealth:
        here = self._reading
        return WitnessHealth(
            ready=not self._why_not and not self._alarms,
            why_not=self._why_not or (self._alarms[0] if self._alarms else ""),
            events=0 if here is None else here.events,
            streams=0 if here is None else len(here.tree),
            seals=0 if here is None or here.last is None else here.last.number,
            sealed_at_us=self._sealed_at_us,
            behind=self._behind,
            places=() if here is None else here.places(),
            alarms=tuple(self._alarms),
        )

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._session()
            except (KafkaUnavailable, SiteProblem, OSError, TimeoutError) as error:
                self._why_not = str(error) or type(error).__name__
                _log.warning("the witness waits", error=self._why_not)
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            failures += 1
            await asyncio.sleep(pause_s * (0.5 + self._randomness.bits(16) / 2**17))

    async def _session(self) -> None:
        """Reads until something fails; begins where the last seal that was saved ends."""
        key = load_or_make_key(self._data_dir, self._randomness)
        identity = await cluster_identity(self._bootstrap)
        here = self._reading = self._resumed(identity.topic_ids)
        published = await self._published()
        here.check = SealedLog(
            iter([seal for seal in published if seal.number > here.number]),
            NO_SITE,
            self._alarm,
            last=here.last,
        )
        here.seals = published
        async with follow(self._bootstrap, EVENT_TOPICS, here.offsets) as follower:
            self._why_not = ""
            due_s = self._clock.monotonic_s() + self._every_s
            while True:
                self._take(here, await follower.next(min(POLL_S, self._every_s)))
                if self._clock.monotonic_s() >= due_s:
                    self._behind = await follower.behind()
                    await self._seal(key, here, follower)
                    due_s = self._clock.monotonic_s() + self._every_s
