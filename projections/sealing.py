"""Seals the log without Kafka: follows the table, verifies the chains, signs the heads each minute.

Reads only. It trusts its own seals and the rows, never the table `streams`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backend.journal.reader import read_page, site_of
from backend.journal.seal import (
    BrokenSeal,
    HeadTree,
    Seal,
    make_seal,
    public_key_of,
    verify_signature,
)
from backend.kit.clock import Clock, Randomness
from backend.kit.postgres import Connection, DatabaseError, connect
from backend.kit.tasks import ended, vital
from projections.sealed_files import SealFolder, load_or_make_key, tree_of
from projections.sealed_log import SealedLog
from projections.verifying import Verifier
from schemas.errors import SiteProblem
from schemas.event import START, Position, Recorded

SEAL_EVERY_S: Final = 60.0
PAGE_ROWS: Final = 500
"""Small: the same event loop answers calls, and a page must not be felt there."""
REST_FACTOR: Final = 3
"""After each page it rests this many times as long as the page took."""
HEADS_SAVED_MAX: Final = 20_000
"""Up to so many streams the heads are saved with every seal, beyond with every tenth."""
BACKOFF_S: Final = (1.0, 5.0, 20.0)
ALARMS_KEPT: Final = 20

_log = structlog.get_logger("projections.sealing")


class SealingHealth(msgspec.Struct, frozen=True):
    """`alarms`: why nothing is sealed any more; empty while all is well."""

    seals: int
    events: int
    streams: int
    position: Position
    sealed_at_us: int | None
    alarms: tuple[str, ...]


class TableSealer:
    """`start` and `stop` once; `seal_now` for whoever cannot wait a minute."""

    def __init__(
        self,
        database_url: str,
        data_dir: Path,
        clock: Clock,
        randomness: Randomness,
        *,
        every_s: float = SEAL_EVERY_S,
        rest_factor: float = REST_FACTOR,
    ) -> None:
        """`rest_factor`: 0 where no calls share the event loop."""
        self._url: Final = database_url
        self._data_dir: Final = data_dir
        self._folder: Final = SealFolder(data_dir)
        self._clock: Final = clock
        self._randomness: Final = randomness
        self._every_s: Final = every_s
        self._rest_factor: Final = rest_factor
        self._turn: Final = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._pass: _Pass | None = None
        self._sealed_at_us: int | None = None
        self._alarms: list[str] = []

    def start(self) -> None:
        self._task = vital(self._run(), "sealer")

    async def stop(self) -> None:
        """Ends between pages; what was not sealed is sealed after the next start."""
        await ended(self._task)

    def health(self) -> SealingHealth:
        here = self._pass
        return SealingHealth(
            seals=0 if here is None else here.number,
            events=0 if here is None else here.sealed.events,
            streams=0 if here is None else len(here.sealed.tree),
            position=START if here is None else here.position,
            sealed_at_us=self._sealed_at_us,
            alarms=tuple(self._alarms),
        )

    async def seal_now(self) -> Seal | None:
        """Reads to the end and seals what is new; None if nothing is, or after an alarm.

        Raises psycopg errors, SiteProblem.
        """
        async with self._turn, await connect(self._url, application="suanpan seal") as connection:
            here = self._pass
            if here is None or (not self._alarms and self._folder.has(here.number + 1)):
                # `suanpan seal` has sealed beside us: its seal is held against the log like ours.
                here = self._pass = await self._resume(connection)
            await self._catch_up(connection, here)
            covered = 0 if here.sealed.last is None else here.sealed.last.events
            if self._alarms or here.sealed.events == covered:
                return None
            # Hashing and writing to disk must not be felt by calls on this event loop.
            return await asyncio.to_thread(self._seal, here)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.seal_now()
                failures = 0
                await asyncio.sleep(self._every_s)
            except (DatabaseError, OSError, TimeoutError, SiteProblem) as error:
                _log.warning("sealing waits", error=type(error).__name__)
                self._pass = None
                pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                failures += 1
                await asyncio.sleep(pause_s * (0.5 + self._randomness.bits(16) / 2**17))

    async def _resume(self, connection: Connection) -> _Pass:
        """Where the saved heads end, if a seal of ours vouches for them; else the beginning."""
        key = load_or_make_key(self._data_dir, self._randomness)
        site_id, _, _ = await site_of(connection)
        verifier = Verifier(site_id, None)
        last, tree = await asyncio.to_thread(self._vouched, key)
        for stream, (version, head_hash) in tree.heads().items():
            verifier.resume(stream, version, head_hash)
        sealed = SealedLog(
            self._folder.seals(0 if last is None else last.number),
            site_id,
            self._alarm,
            last=last,
            tree=tree,
        )
        return _Pass(key, site_id, verifier, sealed, START if last is None else last.position)

    def _vouched(self, key: Ed25519PrivateKey) -> tuple[Seal | None, HeadTree]:
        saved = self._folder.saved_heads()
        if saved is None:
            return None, HeadTree()
        number, heads = saved
        try:
            seal = self._folder.read(number)
            verify_signature(seal)
        except BrokenSeal as error:
            _log.warning("saved heads not used", reason=str(error))
            return None, HeadTree()
        tree = tree_of(heads)
        if tree.root() != seal.root or seal.public_key != public_key_of(key):
            _log.warning("saved heads not used", reason="no seal of ours covers them")
            return None, HeadTree()
        return seal, tree

    async def _catch_up(self, connection: Connection, here: _Pass) -> None:
        while True:
            page = await read_page(connection, here.position, PAGE_ROWS)
            if not page:
                break
            begin_s = self._clock.monotonic_s()
            here.take(page)
            for fault in here.verifier.faults() if here.verifier.fault_count else ():
                self._alarm(fault.stream, fault.version, fault.what)
            await asyncio.sleep((self._clock.monotonic_s() - begin_s) * self._rest_factor)
        if here.sealed.waits:
            # Only rows that are gone can keep a seal of ours from being reached.
            here.sealed.finish()

    def _seal(self, here: _Pass) -> Seal:
        sealed = here.sealed
        seal = make_seal(
            here.key,
            sealed.last,
            site_id=here.site_id,
            position=here.position,
            events=sealed.events,
            tree=sealed.tree,
            made_at_us=self._clock.now_us(),
        )
        self._folder.write(seal)
        if len(sealed.tree) <= HEADS_SAVED_MAX or seal.number % 10 == 0:
            self._folder.save_heads(seal, sealed.tree)
        sealed.last = seal
        self._sealed_at_us = seal.made_at_us
        _log.info("sealed", number=seal.number, events=seal.events, streams=seal.streams)
        return seal

    def _alarm(self, stream: str, version: int, what: str) -> None:
        text = f"{stream} {version}: {what}"
        if text in self._alarms or len(self._alarms) >= ALARMS_KEPT:
            return
        self._alarms.append(text)
        _log.critical("nothing is sealed", stream=stream, version=version, reason=what)


class _Pass:
    """One reading of the log, and what it found."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        site_id: UUID,
        verifier: Verifier,
        sealed: SealedLog,
        position: Position,
    ) -> None:
        self.key: Final = key
        self.site_id: Final = site_id
        self.verifier: Final = verifier
        self.sealed: Final = sealed
        self.position = position

    @property
    def number(self) -> int:
        """Of the newest seal that was read or made; 0 where there is none."""
        return 0 if self.sealed.last is None else self.sealed.last.number

    def take(self, page: list[Recorded]) -> None:
        self.verifier.feed(page)
        self.sealed.feed(page)
        self.position = page[-1].position
