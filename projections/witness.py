"""The witness: reads the topics and nothing else, verifies the chains, and signs what it saw.

It has no rights to the database, so that table and topic check each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backend.journal.seal import (
    NO_SITE,
    BrokenSeal,
    Place,
    Seal,
    decode_seal,
    encode_seal,
    make_seal,
    public_key_of,
    verify_signature,
)
from backend.kit.clock import Clock, Randomness
from backend.kit.kafka import MalformedRecord, Record, read_topics, recorded_of
from backend.kit.kafka_admin import SEALS_TOPIC, KafkaUnavailable, cluster_identity
from backend.kit.kafka_follow import Offsets, follow
from backend.kit.kafka_outlet import Outgoing, Outlet, outlet
from backend.kit.private_files import make_data_dir, write_private
from backend.kit.tasks import ended, vital
from projections.sealed_files import load_or_make_key, tree_of
from projections.sealed_log import SEALS_STREAM, Note, Part, SealedLog
from projections.verifying import Fault, Verifier
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
        self._task = vital(self._run(), "witness")

    async def stop(self) -> None:
        """What was not sealed is read again after the next start."""
        await ended(self._task)

    def health(self) -> WitnessHealth:
        here = self._reading
        return WitnessHealth(
            ready=not self._why_not and not self._alarms,
            why_not=self._why_not or (self._alarms[0] if self._alarms else ""),
            events=0 if here is None else here.sealed.events,
            streams=0 if here is None else len(here.sealed.tree),
            seals=0 if here is None or here.sealed.last is None else here.sealed.last.number,
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
        here = await self._resume(key, identity.topic_ids)
        self._reading = here
        async with (
            outlet(self._bootstrap, client_id="suanpan-witness") as out,
            follow(self._bootstrap, EVENT_TOPICS, here.offsets) as follower,
        ):
            self._why_not = ""
            due_s = self._clock.monotonic_s() + self._every_s
            while True:
                records = await follower.next(min(POLL_S, self._every_s))
                self._take(here, records)
                here.offsets = dict(follower.offsets)
                if self._clock.monotonic_s() < due_s:
                    continue
                self._behind = await follower.behind()
                if here.has_news and not self._alarms:
                    await self._seal(key, here, out)
                due_s = self._clock.monotonic_s() + self._every_s

    async def _resume(self, key: Ed25519PrivateKey, topic_ids: dict[str, str]) -> _Reading:
        """Where the saved state ends, if its seal vouches for it; else the beginning."""
        published = await self._published()
        ours = public_key_of(key)
        if any(seal.public_key != ours for seal in published):
            self._alarm(SEALS_STREAM, 0, "seals in Kafka are signed with another key")
        saved = self._saved(ours)
        after = 0 if saved is None else saved.seal.number
        newer = iter([seal for seal in published if seal.number > after])
        return _Reading(saved, newer, topic_ids, self._alarm)

    async def _published(self) -> list[Seal]:
        found: list[Seal] = []
        async for batch in read_topics(self._bootstrap, (SEALS_TOPIC,)):
            for record in batch:
                try:
                    found.append(decode_seal(record.value or b""))
                except BrokenSeal as error:
                    self._alarm(SEALS_STREAM, record.offset, str(error))
        return found

    def _saved(self, public_key: bytes) -> _Saved | None:
        path = self._data_dir / STATE_FILE
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
            verify_signature(saved.seal)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, BrokenSeal) as error:
            _log.warning("saved place not used", reason=type(error).__name__)
            return None
        root = tree_of({name: (version, digest) for name, version, digest in saved.heads}).root()
        if root != saved.seal.root or saved.seal.public_key != public_key:
            _log.warning("saved place not used", reason="its seal does not vouch for it")
            return None
        return saved

    def _take(self, here: _Reading, records: Sequence[Record]) -> None:
        rows: list[Recorded] = []
        for record in records:
            try:
                rows.append(recorded_of(record))
            except MalformedRecord as error:
                self._alarm(f"{error.topic}/{error.partition}", error.offset, error.what)
        here.take(rows)
        for fault in here.faults():
            self._alarm(fault.stream, fault.version, fault.what)

    async def _seal(self, key: Ed25519PrivateKey, here: _Reading, out: Outlet) -> None:
        """First into the topic, then into the file: what is only in the topic is checked again."""
        seal = make_seal(
            key,
            here.sealed.last,
            site_id=NO_SITE,
            position=max((place.position for place in here.places()), default=START),
            events=here.sealed.events,
            tree=here.sealed.tree,
            made_at_us=self._clock.now_us(),
            places=here.places(),
        )
        record = Outgoing(SEALS_TOPIC, 0, b"seal", encode_seal(seal), [])
        await out.send([record], timeout_s=SEND_TIMEOUT_S)
        here.sealed.last = seal
        make_data_dir(self._data_dir)
        write_private(self._data_dir / STATE_FILE, msgspec.json.encode(here.saved(seal)))
        self._sealed_at_us = seal.made_at_us
        _log.info("sealed", number=seal.number, events=seal.events, streams=seal.streams)

    def _alarm(self, stream: str, version: int, what: str) -> None:
        text = f"{stream} {version}: {what}"
        if text in self._alarms or len(self._alarms) >= ALARMS_KEPT:
            return
        self._alarms.append(text)
        _log.critical("nothing is sealed", stream=stream, version=version, reason=what)


class _Reading:
    """What was read so far, and where reading goes on."""

    def __init__(
        self, saved: _Saved | None, newer: Iterator[Seal], topic_ids: dict[str, str], note: Note
    ) -> None:
        self._verifier: Final = Verifier(None, None, duplicates_known=MARKS_KEPT)
        self._topic_ids: Final = topic_ids
        self._positions: Final[dict[Part, Position]] = {}
        self._faults_seen = 0
        self.offsets: Offsets = {}
        heads = [] if saved is None else saved.heads
        if saved is not None:
            self._positions.update(((p.topic, p.shard), p.position) for p in saved.seal.places)
            if saved.topic_ids == topic_ids:
                # Other topics under the same names begin anew; what is known comes again.
                self.offsets = {(topic, part): offset for topic, part, offset in saved.offsets}
        for stream, version, head_hash in heads:
            self._verifier.resume(stream, version, head_hash)
        self.sealed: Final = SealedLog(
            newer,
            NO_SITE,
            note,
            by_partition=True,
            last=None if saved is None else saved.seal,
            tree=tree_of({name: (version, digest) for name, version, digest in heads}),
        )

    @property
    def has_news(self) -> bool:
        """Whether there is something that no seal covers, and nothing sealed is still to come."""
        covered = 0 if self.sealed.last is None else self.sealed.last.events
        return not self.sealed.waits and self.sealed.events > covered

    def take(self, rows: Sequence[Recorded]) -> None:
        """Verifies rows; what was there before is dropped."""
        for row in rows:
            before = self._verifier.events
            self._verifier.feed((row,))
            if self._verifier.events == before:
                continue
            self.sealed.feed((row,))
            part = (row.topic, row.shard)
            self._positions[part] = max(self._positions.get(part, START), row.position)

    def faults(self) -> list[Fault]:
        """Those that are new."""
        if self._verifier.fault_count == self._faults_seen and not self._verifier.has_homeless:
            return []
        found = self._verifier.faults()
        self._faults_seen = self._verifier.fault_count
        return found

    def places(self) -> tuple[Place, ...]:
        return tuple(
            Place(topic, shard, events, self._positions[topic, shard])
            for (topic, shard), events in sorted(self.sealed.counted.items())
        )

    def saved(self, seal: Seal) -> _Saved:
        return _Saved(
            seal,
            [(stream, *head) for stream, head in sorted(self.sealed.tree.heads().items())],
            [(topic, part, offset) for (topic, part), offset in sorted(self.offsets.items())],
            self._topic_ids,
        )
