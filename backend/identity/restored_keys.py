"""What a restore asks about sealed things: whether SECRET opens them, and which keys to keep.

Nothing here makes a key, or hands out what it opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backend.identity.person import FORGOTTEN_MARK, PERSON, Person
from backend.identity.wrapping import WrappedRow, epoch_aad, epoch_of, open_row
from backend.journal.fold import Folds
from backend.journal.view import load_states
from backend.kit.postgres import Connection, fetch_one
from backend.kit.secrets import SealBroken, SiteSecret, aad_of
from schemas.event import Recorded
from schemas.ids import PersonId, person_stream
from schemas.registry import UndecodableEvent, decode

if TYPE_CHECKING:
    # It loads Kafka's client, which only a restore pays for.
    from backend.journal.keys_topic import EpochRecord, KeyRecord

STORE_EPOCHS: Final = """
INSERT INTO key_epochs (epoch, wrapped, made_at)
SELECT decode(epoch, 'hex'), decode(wrapped, 'hex'), to_timestamp(at_ms / 1000.0)
FROM json_to_recordset(%(epochs)s::json) AS i(epoch text, wrapped text, at_ms bigint)
ON CONFLICT (epoch) DO NOTHING
"""
STORE_KEYS: Final = """
INSERT INTO data_keys (account, key_epoch, wrapped)
SELECT account, key_epoch, decode(wrapped, 'hex')
FROM json_to_recordset(%(keys)s::json) AS i(account bigint, key_epoch integer, wrapped text)
ON CONFLICT (account, key_epoch) DO UPDATE SET wrapped = excluded.wrapped
"""
COUNT_MISSING: Final = """
SELECT count(*) FROM streams s
WHERE s.stream > 'person:' AND s.stream < 'person;' AND position(%(mark)s::bytea IN s.state) = 0
    AND NOT EXISTS (SELECT FROM data_keys d WHERE s.stream = 'person:' || d.account)
"""
SITE_SEALED: Final = ("hash_sealed", "secret_sealed")
"""Fields of events that are sealed with the site's own key, bound to stream and version."""
PERSON_FOLDS: Final = Folds([PERSON])

_ENCODER: Final = msgspec.json.Encoder()


class RestoredKeys:
    """One per restore: it learns the epochs that `store_epochs` is given."""

    def __init__(self, secret: SiteSecret) -> None:
        self._secret: Final = secret
        self._epochs: Final[dict[bytes, bytes]] = {}

    def opens_epoch(self, epoch: EpochRecord) -> bool:
        """Whether the epoch's key was wrapped with this secret; False for a tombstone."""
        try:
            self._secret.unwrap_epoch_key(epoch.wrapped or b"", epoch_aad(epoch.epoch))
        except SealBroken:
            return False
        return True

    def opens_key(self, key: KeyRecord) -> bool | None:
        """Whether the data key opens; None where only an epoch that is not known here could."""
        wrapped = key.wrapped or b""
        epoch = epoch_of(wrapped)
        if epoch is not None and epoch not in self._epochs:
            return None
        epoch_wrapped = None if epoch is None else self._epochs[epoch]
        try:
            open_row(
                self._secret,
                WrappedRow(key.account, key.key_epoch, wrapped, epoch, epoch_wrapped),
            )
        except SealBroken:
            return False
        return True

    def opens_event(self, row: Recorded) -> bool | None:
        """Whether what the event holds was sealed with this secret; None if it holds nothing so."""
        try:
            event = decode(row)
        except UndecodableEvent:
            return None
        for field in SITE_SEALED:
            sealed: bytes = getattr(event, field, b"")
            if sealed:
                return self._opens(sealed, aad_of(row.stream, row.version))
        return None

    async def store_epochs(self, connection: Connection, epochs: Sequence[EpochRecord]) -> None:
        """Keeps those that open; before the keys that need them."""
        kept = [epoch for epoch in epochs if self.opens_epoch(epoch)]
        self._epochs.update((epoch.epoch, epoch.wrapped or b"") for epoch in kept)
        rows: list[dict[str, Any]] = [
            {
                "epoch": epoch.epoch.hex(),
                "wrapped": (epoch.wrapped or b"").hex(),
                "at_ms": epoch.at_ms,
            }
            for epoch in kept
        ]
        await connection.execute(STORE_EPOCHS, {"epochs": _ENCODER.encode(rows).decode()})

    async def store_keys(self, connection: Connection, keys: Sequence[KeyRecord]) -> None:
        """Keeps those that open, of people who are not forgotten.

        `keys` in the topic's order: of two records of one key the last that opens counts.
        """
        streams = [person_stream(PersonId(key.account)) for key in keys]
        found = await load_states(connection, PERSON_FOLDS, list(dict.fromkeys(streams)))
        people: dict[str, Person] = {stream: state for stream, (_, state) in found.items()}
        kept = {
            (key.account, key.key_epoch): key.wrapped or b""
            for key, stream in zip(keys, streams, strict=True)
            if not (stream in people and people[stream].forgotten) and self.opens_key(key)
        }
        rows: list[dict[str, Any]] = [
            {"account": account, "key_epoch": key_epoch, "wrapped": wrapped.hex()}
            for (account, key_epoch), wrapped in kept.items()
        ]
        await connection.execute(STORE_KEYS, {"keys": _ENCODER.encode(rows).decode()})

    async def count_missing(self, connection: Connection) -> int:
        """People who are not forgotten and have no key: what they sealed cannot be read."""
        row = await fetch_one(connection, COUNT_MISSING, {"mark": FORGOTTEN_MARK})
        return 0 if row is None else int(row[0])

    def _opens(self, sealed: bytes, aad: bytes) -> bool:
        try:
            self._secret.open(sealed, aad)
        except SealBroken:
            return False
        return True
