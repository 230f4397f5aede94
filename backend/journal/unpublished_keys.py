"""Wrapped keys, epochs and tombstones that `suanpan.keys` does not have yet.

Marked only under the leader's number, and only as they were when they were sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from backend.journal.keys_topic import EpochRecord, KeyRecord
from backend.kit.postgres import Connection, fetch_all

LIST_KEYS: Final = """
SELECT account, key_epoch, wrapped FROM data_keys WHERE NOT published
ORDER BY account, key_epoch LIMIT %(count_max)s
"""
LIST_EPOCHS: Final = """
SELECT epoch, wrapped FROM key_epochs WHERE NOT published ORDER BY made_at LIMIT %(count_max)s
"""
LIST_TOMBSTONES: Final = """
SELECT account, key_epoch, epoch, at::text FROM key_tombstones WHERE NOT published
ORDER BY at LIMIT %(count_max)s
"""
MARK_KEYS: Final = """
UPDATE data_keys k SET published = true
FROM json_to_recordset(%(keys)s::json) AS i(account bigint, key_epoch integer, wrapped text),
    publisher p
WHERE k.account = i.account AND k.key_epoch = i.key_epoch
    AND k.wrapped = decode(i.wrapped, 'hex') AND p.leader_epoch = %(leader_epoch)s
"""
MARK_EPOCHS: Final = """
UPDATE key_epochs e SET published = true
FROM json_to_recordset(%(epochs)s::json) AS i(epoch text), publisher p
WHERE e.epoch = decode(i.epoch, 'hex') AND p.leader_epoch = %(leader_epoch)s
"""
MARK_TOMBSTONES: Final = """
UPDATE key_tombstones t SET published = true
FROM json_to_recordset(%(tombstones)s::json)
    AS i(account bigint, key_epoch integer, epoch text, at timestamptz), publisher p
WHERE t.account IS NOT DISTINCT FROM i.account AND t.key_epoch IS NOT DISTINCT FROM i.key_epoch
    AND t.epoch IS NOT DISTINCT FROM decode(i.epoch, 'hex') AND t.at = i.at
    AND p.leader_epoch = %(leader_epoch)s
"""

_ENCODER: Final = msgspec.json.Encoder()


class Tombstone(msgspec.Struct, frozen=True):
    """A record that must end, and when that was decided."""

    record: KeyRecord | EpochRecord
    at: str


async def list_unpublished_keys(connection: Connection, count_max: int) -> list[KeyRecord]:
    rows = await fetch_all(connection, LIST_KEYS, {"count_max": count_max})
    return [KeyRecord(account, key_epoch, bytes(wrapped)) for account, key_epoch, wrapped in rows]


async def list_unpublished_epochs(connection: Connection, count_max: int) -> list[EpochRecord]:
    rows = await fetch_all(connection, LIST_EPOCHS, {"count_max": count_max})
    return [EpochRecord(bytes(epoch), bytes(wrapped)) for epoch, wrapped in rows]


async def list_tombstones(connection: Connection, count_max: int) -> list[Tombstone]:
    rows = await fetch_all(connection, LIST_TOMBSTONES, {"count_max": count_max})
    return [
        Tombstone(
            KeyRecord(account, key_epoch, None) if epoch is None else EpochRecord(epoch, None), at
        )
        for account, key_epoch, epoch, at in rows
    ]


async def mark_published(
    connection: Connection, leader_epoch: int, keys: Sequence[KeyRecord]
) -> None:
    """These keys are acknowledged; without effect for a leader of the past, and for a key that was
    wrapped anew since it was listed."""
    rows = [
        {"account": key.account, "key_epoch": key.key_epoch, "wrapped": (key.wrapped or b"").hex()}
        for key in keys
    ]
    await connection.execute(MARK_KEYS, {"leader_epoch": leader_epoch, "keys": _json(rows)})


async def mark_epochs_published(
    connection: Connection, leader_epoch: int, epochs: Sequence[EpochRecord]
) -> None:
    rows = [{"epoch": epoch.epoch.hex()} for epoch in epochs]
    await connection.execute(MARK_EPOCHS, {"leader_epoch": leader_epoch, "epochs": _json(rows)})


async def mark_tombstones_published(
    connection: Connection, leader_epoch: int, tombstones: Sequence[Tombstone]
) -> None:
    rows = [{**_named(one.record), "at": one.at} for one in tombstones]
    arguments = {"leader_epoch": leader_epoch, "tombstones": _json(rows)}
    await connection.execute(MARK_TOMBSTONES, arguments)


def _named(record: KeyRecord | EpochRecord) -> dict[str, Any]:
    match record:
        case KeyRecord():
            return {"account": record.account, "key_epoch": record.key_epoch}
        case EpochRecord():
            return {"epoch": record.epoch.hex()}


def _json(rows: list[dict[str, Any]]) -> str:
    return _ENCODER.encode(rows).decode()
