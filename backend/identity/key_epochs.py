"""Epochs of the keys that wrap data keys: made, followed by a newer one, and destroyed.

A destroyed epoch leaves every copy of what it wrapped unreadable, also in old backups and records.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import structlog

from backend.identity.wrapping import Epoch, WrappedRow, epoch_aad, open_row, wrap_aad, wrapped_in
from backend.kit.clock import Randomness
from backend.kit.postgres import (
    Connection,
    DatabaseError,
    Pool,
    StillReferenced,
    fetch_all,
    fetch_one,
)
from backend.kit.secrets import NONCE_BYTES, EpochKey, SealBroken, SiteSecret
from schemas.errors import Conflict

EPOCH_BYTES: Final = 16
PAGE_KEYS: Final = 500
DESTROY_ATTEMPTS_MAX: Final = 5
LOCK_KEY: Final = 0x5375616E_726577
NEWEST: Final = "SELECT epoch, wrapped FROM key_epochs ORDER BY made_at DESC, epoch DESC LIMIT 1"
MAKE: Final = "INSERT INTO key_epochs (epoch, wrapped) VALUES (%(epoch)s, %(wrapped)s)"
STANDING: Final = """
WITH newest AS (SELECT epoch, made_at FROM key_epochs ORDER BY made_at DESC, epoch DESC LIMIT 1)
SELECT
    CASE WHEN EXISTS (SELECT FROM newest)
        THEN (SELECT made_at FROM newest)
            < clock_timestamp() - make_interval(days => %(days_max)s)
        ELSE EXISTS (SELECT FROM data_keys) END,
    (SELECT count(*) FROM key_epochs) > 1
        OR EXISTS (SELECT FROM data_keys
            WHERE wrap_epoch IS DISTINCT FROM (SELECT epoch FROM newest))
"""
FIND_STALE: Final = """
SELECT d.account, d.key_epoch, d.wrapped, e.epoch, e.wrapped
FROM data_keys d LEFT JOIN key_epochs e ON e.epoch = d.wrap_epoch
WHERE d.wrap_epoch IS DISTINCT FROM %(epoch)s
    AND (d.account, d.key_epoch) > (%(account)s, %(key_epoch)s)
ORDER BY d.account, d.key_epoch LIMIT %(count_max)s
"""
REPLACE: Final = """
UPDATE data_keys k SET wrapped = decode(i.fresh, 'hex'), published = false
FROM json_to_recordset(%(keys)s::json)
    AS i(account bigint, key_epoch integer, stale text, fresh text)
WHERE k.account = i.account AND k.key_epoch = i.key_epoch AND k.wrapped = decode(i.stale, 'hex')
"""
DESTROY: Final = """
WITH gone AS (
    DELETE FROM key_epochs e WHERE e.epoch <> %(epoch)s
        AND NOT EXISTS (SELECT FROM data_keys d WHERE d.wrap_epoch = e.epoch)
    RETURNING e.epoch
), told AS (
    INSERT INTO key_tombstones (epoch) SELECT epoch FROM gone ON CONFLICT DO NOTHING
)
SELECT count(*) FROM gone
"""
WIPE: Final = "VACUUM (FULL) key_epochs"
TRY_LOCK: Final = "SELECT pg_try_advisory_lock(%(key)s::bigint)"
UNLOCK: Final = "SELECT pg_advisory_unlock(%(key)s::bigint)"
EPOCH_DAYS_MAX: Final = 28
"""A forgetting is promised to reach old copies of the keys within 30 days."""

_ENCODER: Final = msgspec.json.Encoder()
_log = structlog.get_logger("identity.keys")


class Rewrapped(msgspec.Struct, frozen=True):
    """What a re-wrap did."""

    keys: int
    epochs_destroyed: int
    unreadable: int
    """Keys that the site's secret does not open: they, and their epoch, stay as they are."""


class KeyEpochs:
    """Raises psycopg errors while Postgres does not answer. Nothing is kept in memory."""

    def __init__(self, pool: Pool, secret: SiteSecret, randomness: Randomness) -> None:
        self._pool: Final = pool
        self._secret: Final = secret
        self._randomness: Final = randomness

    async def newest(self, connection: Connection) -> Epoch:
        """The epoch to wrap with; made where there is none. Raises SealBroken."""
        row = await fetch_one(connection, NEWEST)
        if row is None:
            await self._make(connection)
            row = await fetch_one(connection, NEWEST)
            assert row is not None, "it was made a moment ago, and the newest is never destroyed"
        return self._opened(row)

    async def rewrap(self) -> Rewrapped:
        """A new epoch for every key, and the end of the ones before. Raises Conflict where another
        process is at it; SealBroken."""
        async with self._locked() as connection:
            if connection is None:
                raise Conflict("Another process is wrapping the keys anew; try again later.")
            return await self._carry_on(connection, await self._make(connection))

    async def tend(self) -> Rewrapped | None:
        """A re-wrap where the epoch is old, or an earlier one was cut short; None: nothing to do,
        or somebody else is at it. Raises SealBroken."""
        async with self._locked() as connection:
            if connection is None:
                return None
            row = await fetch_one(connection, STANDING, {"days_max": EPOCH_DAYS_MAX})
            assert row is not None
            old, unfinished = row
            if old:
                return await self._carry_on(connection, await self._make(connection))
            if unfinished:
                return await self._carry_on(connection, await self.newest(connection))
            return None

    async def _make(self, connection: Connection) -> Epoch:
        key = EpochKey.generate(self._randomness)
        epoch = Epoch(self._randomness.bytes(EPOCH_BYTES), key)
        nonce = self._randomness.bytes(NONCE_BYTES)
        wrapped = self._secret.wrap_data_key(key, epoch_aad(epoch.epoch), nonce)
        await connection.execute(MAKE, {"epoch": epoch.epoch, "wrapped": wrapped})
        return epoch

    async def _carry_on(self, connection: Connection, to: Epoch) -> Rewrapped:
        """A key that is stored meanwhile may still be wrapped in an epoch before: its reference
        refuses the end of that epoch, and we look again."""
        keys = unreadable = 0
        for _ in range(DESTROY_ATTEMPTS_MAX):
            moved, unreadable = await self._move(connection, to)
            keys += moved
            try:
                row = await fetch_one(connection, DESTROY, {"epoch": to.epoch})
            except StillReferenced:
                continue
            assert row is not None
            _log.info("data keys rewrapped", keys=keys, epochs_destroyed=row[0])
            if row[0]:
                await _wipe(connection)
            return Rewrapped(keys, row[0], unreadable)
        return Rewrapped(keys, 0, unreadable)

    async def _move(self, connection: Connection, to: Epoch) -> tuple[int, int]:
        """(keys that are wrapped in `to` now, keys that could not be opened)."""
        moved = unreadable = 0
        place = {"account": -1, "key_epoch": 0}
        while True:
            rows = await fetch_all(
                connection, FIND_STALE, {"epoch": to.epoch, "count_max": PAGE_KEYS, **place}
            )
            page = [WrappedRow(*row) for row in rows]
            fresh = self._rewrapped(page, to)
            if fresh:
                await connection.execute(REPLACE, {"keys": _ENCODER.encode(fresh).decode()})
            moved += len(fresh)
            unreadable += len(page) - len(fresh)
            if len(page) < PAGE_KEYS:
                return moved, unreadable
            place = {"account": page[-1].account, "key_epoch": page[-1].key_epoch}

    def _rewrapped(self, page: Sequence[WrappedRow], to: Epoch) -> list[dict[str, Any]]:
        fresh: list[dict[str, Any]] = []
        for row in page:
            try:
                key = open_row(self._secret, row)
            except SealBroken as error:
                _log.error("data key unreadable", account=row.account, reason=error.code)
                continue
            aad = wrap_aad(row.account, row.key_epoch)
            wrapped = wrapped_in(to, key, aad, self._randomness.bytes(NONCE_BYTES))
            fresh.append(
                {
                    "account": row.account,
                    "key_epoch": row.key_epoch,
                    "stale": row.wrapped.hex(),
                    "fresh": wrapped.hex(),
                }
            )
        return fresh

    def _opened(self, row: tuple[Any, ...]) -> Epoch:
        epoch = bytes(row[0])
        return Epoch(epoch, self._secret.unwrap_epoch_key(bytes(row[1]), epoch_aad(epoch)))

    @asynccontextmanager
    async def _locked(self) -> AsyncGenerator[Connection | None]:
        """One process moves keys at a time: two would undo each other's work."""
        async with self._pool.connection() as connection:
            row = await fetch_one(connection, TRY_LOCK, {"key": LOCK_KEY})
            if row is None or not row[0]:
                yield None
                return
            try:
                yield connection
            finally:
                if not connection.closed:
                    await connection.execute(UNLOCK, {"key": LOCK_KEY})


async def _wipe(connection: Connection) -> None:
    """A deleted row's bytes stay in the table's file, and in base backups: the file is written
    anew. Of a few rows, so that it holds nobody up."""
    try:
        await connection.execute(WIPE)
    except DatabaseError as error:
        _log.warning("destroyed epochs lie in the file until the next", error=type(error).__name__)
