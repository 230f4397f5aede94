"""Data keys are wrapped anew, whoever makes keys meanwhile, and what was wrapped before is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from backend.identity.data_keys import DataKeys
from backend.identity.key_epochs import LOCK_KEY, Rewrapped
from backend.identity.wrapping import EPOCH_MARK, WrappedRow, open_row, wrap_aad
from backend.journal.publisher_place import lead
from backend.journal.unpublished_keys import (
    list_tombstones,
    list_unpublished_epochs,
    list_unpublished_keys,
    mark_published,
    mark_tombstones_published,
)
from backend.kit.clock import SystemRandomness
from backend.kit.postgres import connect, make_pool
from backend.kit.secrets import NONCE_BYTES, DataKey, SealBroken, SiteSecret
from schemas.errors import Conflict
from schemas.ids import PersonId
from tests.conftest import Database
from tests.integration.identity_site import SECRET_TEXT

SECRET, RANDOM = SiteSecret(SECRET_TEXT), SystemRandomness()
AAD = b"somewhere"
LIST_KEYS = "SELECT account, key_epoch, wrapped, wrap_epoch FROM data_keys ORDER BY account"
LIST_EPOCHS = "SELECT epoch, wrapped FROM key_epochs ORDER BY made_at"


@asynccontextmanager
async def keys_on(database: Database, secret: SiteSecret = SECRET) -> AsyncGenerator[DataKeys]:
    async with make_pool(database.app_url, application="test", size_max=4) as pool:
        yield DataKeys(pool, secret, RANDOM)


def stored(database: Database, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.app_url) as connection:
        return connection.execute(query.encode()).fetchall()


def copy_of(key: tuple[Any, ...], epoch_wrapped: bytes | None) -> WrappedRow:
    """A row of LIST_KEYS beside what is left of its epoch."""
    account, key_epoch, wrapped, epoch = key
    return WrappedRow(account, key_epoch, wrapped, epoch, epoch_wrapped)


def sealed_with(key: DataKey, text: str) -> bytes:
    return key.seal(text.encode(), AAD, RANDOM.bytes(NONCE_BYTES))


async def opened(keys: DataKeys, account: int, sealed: bytes) -> str:
    key = await keys.find(PersonId(account))
    assert key is not None
    return key.open(sealed, AAD).decode()


async def test_a_rewrap_leaves_what_was_sealed_readable_and_old_copies_unreadable(
    database: Database,
) -> None:
    async with keys_on(database) as keys:
        sealed = {n: sealed_with(await keys.make(PersonId(n)), f"text {n}") for n in range(1, 6)}
        old_keys, old_epochs = stored(database, LIST_KEYS), stored(database, LIST_EPOCHS)
        assert len(old_epochs) == 1
        open_row(SECRET, copy_of(old_keys[0], old_epochs[0][1]))

        assert await keys.epochs.rewrap() == Rewrapped(5, 1, 0)

        assert [await opened(keys, n, text) for n, text in sealed.items()] == [
            f"text {n}" for n in sealed
        ]
        ((epoch, wrapped),) = stored(database, LIST_EPOCHS)
        assert epoch != old_epochs[0][0]
        assert {row[3] for row in stored(database, LIST_KEYS)} == {epoch}
        moved = (*old_keys[0][:3], epoch)
        for left in (copy_of(old_keys[0], None), copy_of(moved, wrapped)):
            with pytest.raises(SealBroken):
                open_row(SECRET, left)


async def test_a_destroyed_epoch_leaves_the_tables_file(database: Database) -> None:
    def in_the_file(content: bytes) -> bool:
        with psycopg.connect(database.superuser_url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            row = connection.execute(
                "SELECT pg_read_binary_file(pg_relation_filepath('key_epochs'))"
            ).fetchone()
        assert row is not None
        return content in bytes(row[0])

    async with keys_on(database) as keys:
        await keys.make(PersonId(1))
        ((_, wrapped),) = stored(database, LIST_EPOCHS)
        assert in_the_file(wrapped)
        await keys.epochs.rewrap()
        ((_, now),) = stored(database, LIST_EPOCHS)
        assert in_the_file(now)
        assert not in_the_file(wrapped)


async def test_keys_made_during_rewraps_are_never_lost(database: Database) -> None:
    async with keys_on(database) as keys, keys_on(database) as other:
        sealed: dict[int, bytes] = {}
        done = asyncio.Event()

        async def make(numbers: range, through: DataKeys) -> None:
            for number in numbers:
                key = await through.make(PersonId(number))
                sealed[number] = sealed_with(key, f"text {number}")

        async def rewrap() -> int:
            count = 0
            while not done.is_set():
                await keys.epochs.rewrap()
                count += 1
            return count

        rewrapping = asyncio.create_task(rewrap())
        await asyncio.gather(
            make(range(1, 100), keys), make(range(100, 200), other), make(range(50, 150), other)
        )
        done.set()
        assert await rewrapping > 1
        for number in range(1, 200):
            assert await opened(keys, number, sealed[number]) == f"text {number}"
        assert len(stored(database, LIST_EPOCHS)) == 1


async def test_a_rewrap_that_was_cut_short_is_carried_on_in_its_epoch(database: Database) -> None:
    async with keys_on(database) as keys:
        sealed = sealed_with(await keys.make(PersonId(1)), "text")
        assert await keys.epochs.tend() is None
        epoch = RANDOM.bytes(16)
        key = DataKey.generate(RANDOM)
        wrapped = SECRET.wrap_data_key(key, b"key epoch" + epoch, RANDOM.bytes(NONCE_BYTES))
        with psycopg.connect(database.app_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO key_epochs (epoch, wrapped) VALUES (%s, %s)", (epoch, wrapped)
            )
        assert await keys.epochs.tend() == Rewrapped(1, 1, 0)
        assert stored(database, LIST_EPOCHS) == [(epoch, wrapped)]
        assert await opened(keys, 1, sealed) == "text"
        assert await keys.epochs.tend() is None


async def test_an_old_epoch_is_followed_by_a_new_one_and_a_young_one_is_left(
    database: Database,
) -> None:
    async with keys_on(database) as keys:
        assert await keys.epochs.tend() is None, "an empty site needs no epoch"
        await keys.make(PersonId(1))
        for days, expected in ((27, None), (29, Rewrapped(1, 1, 0))):
            with psycopg.connect(database.app_url, autocommit=True) as connection:
                connection.execute(
                    "UPDATE key_epochs SET made_at = now() - make_interval(days => %s)", (days,)
                )
            assert await keys.epochs.tend() == expected


async def test_keys_of_earlier_versions_open_and_get_an_epoch(database: Database) -> None:
    key = DataKey.generate(RANDOM)
    wrapped = SECRET.wrap_data_key(key, wrap_aad(7, 1), RANDOM.bytes(NONCE_BYTES))
    with psycopg.connect(database.app_url, autocommit=True) as connection:
        connection.execute("INSERT INTO data_keys (account, wrapped) VALUES (7, %s)", (wrapped,))
    sealed = sealed_with(key, "text")
    async with keys_on(database) as keys:
        assert await opened(keys, 7, sealed) == "text"
        assert await keys.epochs.tend() == Rewrapped(1, 0, 0)
        assert await opened(keys, 7, sealed) == "text"
    ((_, _, now, _),) = stored(database, LIST_KEYS)
    assert now.startswith(EPOCH_MARK)


async def test_a_key_that_does_not_open_keeps_its_epoch_and_stops_no_other(
    database: Database,
) -> None:
    async with keys_on(database) as keys:
        for number in (1, 2, 3):
            await keys.make(PersonId(number))
        with psycopg.connect(database.app_url, autocommit=True) as connection:
            connection.execute("""
                UPDATE data_keys SET wrapped = substring(wrapped FROM 1 FOR 17) || '\\x00'
                WHERE account = 2""")
        assert await keys.epochs.rewrap() == Rewrapped(2, 0, 1)
        assert len(stored(database, LIST_EPOCHS)) == 2
        assert await keys.forget(PersonId(2))
        assert await keys.epochs.tend() == Rewrapped(0, 1, 0)


async def test_one_process_rewraps_at_a_time(database: Database) -> None:
    async with keys_on(database) as keys:
        await keys.make(PersonId(1))
        async with await connect(database.app_url, application="test") as other:
            await other.execute("SELECT pg_advisory_lock(%s::bigint)", (LOCK_KEY,))
            with pytest.raises(Conflict):
                await keys.epochs.rewrap()
            assert await keys.epochs.tend() is None
            await other.execute("SELECT pg_advisory_unlock(%s::bigint)", (LOCK_KEY,))
        assert (await keys.epochs.rewrap()).keys == 1


async def test_what_was_wrapped_anew_since_it_was_listed_is_still_to_be_published(
    database: Database,
) -> None:
    async with (
        keys_on(database) as keys,
        await connect(database.app_url, application="test") as connection,
    ):
        leader = (await lead(connection)).leader_epoch
        await keys.make(PersonId(1))
        before = await list_unpublished_keys(connection, 10)
        await keys.epochs.rewrap()
        await mark_published(connection, leader, before)
        after = await list_unpublished_keys(connection, 10)
        assert [key.wrapped for key in after] != [key.wrapped for key in before]
        await mark_published(connection, leader - 1, after)
        assert await list_unpublished_keys(connection, 10) == after
        await mark_published(connection, leader, after)
        assert await list_unpublished_keys(connection, 10) == []


async def test_tombstones_are_published_until_they_are_acknowledged(database: Database) -> None:
    async with (
        keys_on(database) as keys,
        await connect(database.app_url, application="test") as connection,
    ):
        leader = (await lead(connection)).leader_epoch
        await keys.make(PersonId(1))
        (epoch,) = await list_unpublished_epochs(connection, 10)
        assert await keys.forget(PersonId(1))
        assert not await keys.forget(PersonId(1))
        await keys.epochs.rewrap()
        listed = await list_tombstones(connection, 10)
        assert [one.record.wrapped for one in listed] == [None, None]
        assert [getattr(one.record, "account", None) for one in listed] == [1, None]
        assert getattr(listed[1].record, "epoch", None) == epoch.epoch
        await keys.make(PersonId(1))
        await keys.forget(PersonId(1))
        await mark_tombstones_published(connection, leader, listed)
        (again,) = await list_tombstones(connection, 10)
        assert again.record == listed[0].record, "a key that died again is told of again"
