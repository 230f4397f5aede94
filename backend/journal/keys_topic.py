"""What `suanpan.keys` holds: wrapped keys, their tombstones, and which site all topics belong to.

Records are made and read here and nowhere else; it unwraps nothing.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from backend.kit.kafka import MalformedRecord, Record
from backend.kit.kafka_admin import KEYS_TOPIC
from backend.kit.kafka_outlet import Outgoing
from schemas.event import SHARDS, shard_of

SITE_NAME: Final = b"site"
"""Key of the record that names the site: the chains begin with its id, so a restore needs it."""
_ACCOUNT: Final = "account:"
_EPOCH: Final = "epoch:"
_EPOCH_BYTES: Final = 16


class SiteRecord(msgspec.Struct, frozen=True):
    """Written by every publisher that begins; compaction keeps the last one."""

    site_id: UUID
    shards: int


class KeyRecord(msgspec.Struct, frozen=True):
    """An account's wrapped data key, or its tombstone: `wrapped` is None, the key was forgotten."""

    account: int
    key_epoch: int
    wrapped: bytes | None


class EpochRecord(msgspec.Struct, frozen=True):
    """The wrapped key of an epoch, or its tombstone: what it wrapped opens no more."""

    epoch: bytes
    wrapped: bytes | None
    at_ms: int = 0
    """When it was sent, since 1970; 0 while it is not."""


def site_record(site_id: UUID) -> Outgoing:
    value = msgspec.json.encode(SiteRecord(site_id, SHARDS))
    return Outgoing(KEYS_TOPIC, shard_of(SITE_NAME.decode()), SITE_NAME, value, [])


def site_records(site_id: UUID) -> list[Outgoing]:
    """The same for every partition: Kafka compacts a partition only when something new arrives
    there, and what was forgotten must not lie in the newest segment for ever."""
    record = site_record(site_id)
    return [msgspec.structs.replace(record, partition=shard) for shard in range(SHARDS)]


def key_record(key: KeyRecord) -> Outgoing:
    """`account:42/1` → the wrapped key. Compaction keeps the last record; a tombstone ends it."""
    stream = f"{_ACCOUNT}{key.account}"
    name = f"{stream}/{key.key_epoch}".encode()
    return Outgoing(KEYS_TOPIC, shard_of(stream), name, key.wrapped, [])


def epoch_record(epoch: EpochRecord) -> Outgoing:
    """`epoch:<hex>` → its wrapped key, or a tombstone."""
    name = f"{_EPOCH}{epoch.epoch.hex()}"
    return Outgoing(KEYS_TOPIC, shard_of(name), name.encode(), epoch.wrapped, [])


def read_record(record: Record) -> SiteRecord | KeyRecord | EpochRecord:
    """What a record of the topic says. Raises MalformedRecord."""
    name = (record.key or b"").decode("utf-8", "replace")
    try:
        if name == SITE_NAME.decode():
            return msgspec.json.decode(record.value or b"", type=SiteRecord)
        if name.startswith(_EPOCH):
            epoch = bytes.fromhex(name.removeprefix(_EPOCH))
            if len(epoch) == _EPOCH_BYTES:
                return EpochRecord(epoch, record.value, record.timestamp)
    except ValueError as error:
        raise MalformedRecord(record, str(error)) from error
    stream, _, key_epoch = name.partition("/")
    account = stream.removeprefix(_ACCOUNT)
    if not stream.startswith(_ACCOUNT) or not _are_numbers(account, key_epoch):
        raise MalformedRecord(record, "names neither the site, nor an epoch, nor an account's key")
    return KeyRecord(int(account), int(key_epoch), record.value)


def _are_numbers(*texts: str) -> bool:
    return all(text.isascii() and text.isdigit() and len(text) <= 18 for text in texts)
