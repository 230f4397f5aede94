"""Accounts' data keys, wrapped with the site's secret, in a table that can forget them.

A key is stored before anything is sealed with it; it is never cached, so that forgetting works.
"""

from __future__ import annotations

import struct
from typing import Final

from backend.kit.clock import Randomness
from backend.kit.postgres import Pool, fetch_one
from backend.kit.secrets import NONCE_BYTES, DataKey, SealBroken, SiteSecret
from schemas.errors import SiteProblem
from schemas.ids import PersonId

KEY_EPOCH: Final = 1
FIND: Final = """
SELECT key_epoch, wrapped FROM data_keys
WHERE account = %(account)s ORDER BY key_epoch DESC LIMIT 1
"""
FIND_ANY: Final = "SELECT account, key_epoch, wrapped FROM data_keys ORDER BY account LIMIT 1"
STORE: Final = """
INSERT INTO data_keys (account, key_epoch, wrapped)
VALUES (%(account)s, %(key_epoch)s, %(wrapped)s) ON CONFLICT DO NOTHING
"""


class DataKeys:
    def __init__(self, pool: Pool, secret: SiteSecret, randomness: Randomness) -> None:
        self._pool: Final = pool
        self._secret: Final = secret
        self._randomness: Final = randomness

    async def find(self, account: PersonId) -> DataKey | None:
        """The account's key; None if it has none, or was forgotten. Raises SealBroken."""
        async with self._pool.connection() as connection:
            row = await fetch_one(connection, FIND, {"account": account})
        if row is None:
            return None
        return self._secret.unwrap_data_key(bytes(row[1]), wrap_aad(account, row[0]))

    async def make(self, account: PersonId) -> DataKey:
        """The key of an account that must have one: of two made at once the first counts."""
        fresh = DataKey.generate(self._randomness)
        wrapped = self._secret.wrap_data_key(
            fresh, wrap_aad(account, KEY_EPOCH), self._randomness.bytes(NONCE_BYTES)
        )
        async with self._pool.connection() as connection:
            await connection.execute(
                STORE, {"account": account, "key_epoch": KEY_EPOCH, "wrapped": wrapped}
            )
        kept = await self.find(account)
        assert kept is not None, "it was stored a moment ago"
        return kept

    async def check_secret(self) -> None:
        """Raises SiteProblem if this site's keys were wrapped with another secret."""
        async with self._pool.connection() as connection:
            row = await fetch_one(connection, FIND_ANY)
        if row is None:
            return
        try:
            self._secret.unwrap_data_key(bytes(row[2]), wrap_aad(row[0], row[1]))
        except SealBroken as error:
            raise SiteProblem(
                "SECRET is not the one this site was made with. Set SECRET, or put back the "
                "`secret` file of its data folder."
            ) from error


def wrap_aad(account: int, key_epoch: int) -> bytes:
    """What a wrapped key is bound to."""
    return b"data key" + struct.pack(">QQ", account, key_epoch)
