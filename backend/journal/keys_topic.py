"""What `suanpan.keys` holds: wrapped data keys by account, and which site all topics belong to.

Records are made and read here and nowhere else; it unwraps nothing.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from backend.journal.publisher_place import DataKey
from backend.kit.kafka import MalformedRecord, Record
from backend.kit.kafka_admin import KEYS_TOPIC
from backend.kit.kafka_outlet import Outgoing
from schemas.event import SHARDS, shard_of

SITE_NAME: Final = b"site"
"""Key of the record that names the site: the chains begin with its id, so a restore needs it."""
_ACCOUNT: Final = "account:"


class SiteRecord(msgspec.Struct, frozen=True):
    """Written by every publisher that begins; compaction keeps the last one."""

    site_id: UUID
    shards: int


class KeyRecord(msgspec.Struct, frozen=True):
    """A wrapped data key, or its tombstone: `wrapped` is None and the key was forgotten."""

    account: int
    key_epoch: int
    wrapped: bytes | None


def site_record(site_id: UUID) -> Outgoing:
    value = msgspec.json.encode(SiteRecord(site_id, SHARDS))
    return Outgoing(KEYS_TOPIC, shard_of(SITE_NAME.decode()), SITE_NAME, value, [])


def key_record(key: DataKey) -> Outgoing:
    """`account:42/1` → the wrapped key. Compaction keeps the last record; a tombstone ends it."""
    stream = f"{_ACCOUNT}{key.account}"
    name = f"{stream}/{key.key_epoch}".encode()
    return Outgoing(KEYS_TOPIC, shard_of(stream), name, key.wrapped, [])


def read_record(record: Record) -> SiteRecord | KeyRecord:
    """What a record of the topic says. Raises MalformedRecord."""
    name = record.key or b""
    if name == SITE_NAME:
        try:
            return msgspec.json.decode(record.value or b"", type=SiteRecord)
        except msgspec.DecodeError as error:
            raise MalformedRecord(record, str(error)) from error
    stream, _, key_epoch = name.decode("utf-8", "replace").partition("/")
    account = stream.removeprefix(_ACCOUNT)
    if not stream.startswith(_ACCOUNT) or not _are_numbers(account, key_epoch):
        raise MalformedRecord(record, "neither the site nor an account's key")
    return KeyRecord(int(account), int(key_epoch), record.value)


def _are_numbers(*texts: str) -> bool:
    return all(text.isascii() and text.isdigit() and len(text) <= 18 for text in texts)
