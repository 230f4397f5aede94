"""Accounts' data keys, wrapped in an epoch of the site, in a table that can forget them.

A key is stored before anything is sealed with it; it is never cached, so that forgetting works.
"""

from __future__ import annotations

from typing import Any, Final

from backend.identity.key_epochs import KeyEpochs
from backend.identity.wrapping import WrappedRow, open_row, wrap_aad, wrapped_in
from backend.kit.clock import Randomness
from backend.kit.postgres import Connection, Pool, StillReferenced, fetch_one
from backend.kit.secrets import NONCE_BYTES, DataKey, SealBroken, SiteSecret
from schemas.errors import SiteProblem, Unavailable
from schemas.ids import PersonId

KEY_EPOCH: Final = 1
STORE_ATTEMPTS_MAX: Final = 5
FIND: Final = """
SELECT d.account, d.key_epoch, d.wrapped, e.epoch, e.wrapped
FROM data_keys d LEFT JOIN key_epochs e ON e.epoch = d.wrap_epoch
WHERE d.account = %(account)s ORDER BY d.key_epoch DESC LIMIT 1
"""
FIND_ANY: Final = """
SELECT d.account, d.key_epoch, d.wrapped, e.epoch, e.wrapped
FROM data_keys d LEFT JOIN key_epochs e ON e.epoch = d.wrap_epoch
ORDER BY d.account LIMIT 1
"""
STORE: Final = """
INSERT INTO data_keys (account, key_epoch, wrapped)
VALUES (%(account)s, %(key_epoch)s, %(wrapped)s) ON CONFLICT DO NOTHING
"""
FORGET: Final = """
WITH gone AS (
    DELETE FROM data_keys WHERE account = %(account)s RETURNING account, key_epoch
), told AS (
    INSERT INTO key_tombstones (account, key_epoch) SELECT account, key_epoch FROM gone
    ON CONFLICT (account, key_epoch, epoch)
        DO UPDATE SET at = clock_timestamp(), published = false
)
SELECT count(*) FROM gone
"""


class DataKeys:
    def __init__(self, pool: Pool, secret: SiteSecret, randomness: Randomness) -> None:
        self._pool: Final = pool
        self._secret: Final = secret
        self._randomness: Final = randomness
        self.epochs: Final = KeyEpochs(pool, secret, randomness)

    async def find(self, account: PersonId) -> DataKey | None:
        """The account's key; None if it has none, or was forgotten. Raises SealBroken."""
        async with self._pool.connection() as connection:
            return await self._find(connection, account)

    async def make(self, account: PersonId) -> DataKey:
        """The key of an account that must have one: of two made at once the first counts.

        Raises SealBroken; Unavailable where epochs end faster than a key can be stored.
        """
        async with self._pool.connection() as connection:
            for _ in range(STORE_ATTEMPTS_MAX):
                kept = await self._find(connection, account)
                if kept is not None:
                    return kept
                await self._store_new(connection, account)
        raise Unavailable("The site's keys are being wrapped anew; try again.", retry_after_s=1)

    async def forget(self, account: PersonId) -> bool:
        """Deletes the account's key and tells Kafka so; False if there was none."""
        async with self._pool.connection() as connection:
            row = await fetch_one(connection, FORGET, {"account": account})
        return row is not None and row[0] > 0

    async def check_secret(self) -> None:
        """Raises SiteProblem if this site's keys were wrapped with another secret."""
        async with self._pool.connection() as connection:
            row = await fetch_one(connection, FIND_ANY)
        if row is None:
            return
        try:
            self._opened(row)
        except SealBroken as error:
            raise SiteProblem(
                "SECRET is not the one this site was made with. Set SECRET, or put back the "
                "`secret` file of its data folder."
            ) from error

    async def _find(self, connection: Connection, account: PersonId) -> DataKey | None:
        row = await fetch_one(connection, FIND, {"account": account})
        return None if row is None else self._opened(row)

    async def _store_new(self, connection: Connection, account: PersonId) -> None:
        epoch = await self.epochs.newest(connection)
        fresh = DataKey.generate(self._randomness)
        nonce = self._randomness.bytes(NONCE_BYTES)
        wrapped = wrapped_in(epoch, fresh, wrap_aad(account, KEY_EPOCH), nonce)
        key = {"account": account, "key_epoch": KEY_EPOCH, "wrapped": wrapped}
        try:
            await connection.execute(STORE, key)
        except StillReferenced:
            # The epoch was destroyed since it was read: the caller looks again, and at a newer one.
            return

    def _opened(self, row: tuple[Any, ...]) -> DataKey:
        return open_row(self._secret, WrappedRow(*row))
