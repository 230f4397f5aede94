"""What `suanpan.keys` says before a restore writes anything: the site, what is dead, whether SECRET
opens the rest. It keeps no data key: there is one for each person.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Final, Protocol

from backend.journal.keys_topic import EpochRecord, KeyRecord, SiteRecord, read_record
from backend.kit.kafka import read_topics
from backend.kit.kafka_admin import KEYS_TOPIC
from backend.kit.postgres import Connection
from schemas.event import Recorded


class SealedThings(Protocol):
    """Who can tell whether something was sealed with the secret at hand, and keeps keys."""

    def opens_epoch(self, epoch: EpochRecord) -> bool: ...

    def opens_key(self, key: KeyRecord) -> bool | None:
        """None: only an epoch that `store_epochs` was not given could tell."""
        ...

    def opens_event(self, row: Recorded) -> bool | None:
        """None: it holds nothing that the site's secret sealed."""
        ...

    async def store_epochs(self, connection: Connection, epochs: Sequence[EpochRecord]) -> None: ...

    async def store_keys(self, connection: Connection, keys: Sequence[KeyRecord]) -> None: ...

    async def count_missing(self, connection: Connection) -> int: ...


class KeysSurvey:
    """Filled by `survey_keys`."""

    def __init__(self, sealed: SealedThings) -> None:
        self._sealed: Final = sealed
        self._dead: Final[set[tuple[int, int]]] = set()
        self._dead_epochs: Final[set[bytes]] = set()
        self._epochs: Final[dict[bytes, EpochRecord]] = {}
        self.site: SiteRecord | None = None
        self.opened: bool | None = None
        """Whether anything opened; None: there was nothing that could tell."""

    def take(self, record: SiteRecord | KeyRecord | EpochRecord) -> None:
        match record:
            case SiteRecord():
                self.site = record
            case KeyRecord(account, key_epoch, None):
                self._dead.add((account, key_epoch))
            case KeyRecord():
                if not self.opened:
                    self._tell(self._sealed.opens_key(record))
            case EpochRecord(epoch, None):
                self._dead_epochs.add(epoch)
            case EpochRecord(epoch):
                self._epochs[epoch] = record
                if not self.opened:
                    self._tell(self._sealed.opens_epoch(record))

    def epochs(self) -> list[EpochRecord]:
        """Those that were not destroyed: one every few weeks."""
        return [one for epoch, one in self._epochs.items() if epoch not in self._dead_epochs]

    def lives(self, key: KeyRecord) -> bool:
        """Whether the record is a key that no tombstone anywhere in the topic ends."""
        return key.wrapped is not None and (key.account, key.key_epoch) not in self._dead

    def _tell(self, opened: bool | None) -> None:
        if opened is not None:
            self.opened = opened


async def survey_keys(bootstrap: str, sealed: SealedThings) -> KeysSurvey:
    """Reads the whole topic. Raises KafkaUnavailable, MalformedRecord."""
    survey = KeysSurvey(sealed)
    async with aclosing(read_topics(bootstrap, (KEYS_TOPIC,))) as batches:
        async for batch in batches:
            for record in batch:
                survey.take(read_record(record))
    return survey


async def import_keys(
    connection: Connection, bootstrap: str, survey: KeysSurvey, sealed: SealedThings
) -> None:
    """After the events: who was forgotten is known by now, and a key of theirs stays away.

    Raises as `survey_keys`; psycopg errors.
    """
    await sealed.store_epochs(connection, survey.epochs())
    async with aclosing(read_topics(bootstrap, (KEYS_TOPIC,))) as batches:
        async for batch in batches:
            records = [one for one in map(read_record, batch) if isinstance(one, KeyRecord)]
            await sealed.store_keys(connection, [one for one in records if survey.lives(one)])
