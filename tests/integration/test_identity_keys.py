"""API keys in memory: created, limited, expired and revoked, also while Postgres is away."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

import pytest

from backend.identity.key import KEY, Key
from backend.identity.key_asked import KeyAsked
from backend.journal.commands import Accept, Command, Landed
from backend.journal.reader import read_stream
from backend.kit.secrets import aad_of, hash_api_key
from schemas import identity
from schemas.errors import BadRequest, NotFound
from schemas.identity import Reset, Scope
from schemas.ids import KeyId, PersonId, account_stream, key_stream
from schemas.money import MicroPoints
from tests.conftest import Database
from tests.integration.identity_site import caught_up, outage, process_of, until


class KeyCreated(identity.KeyCreated, frozen=True):
    """As it was written before keys had scopes: what is left at its default is not written."""

    SCHEMA: ClassVar[int] = 1


async def test_a_created_key_is_found_by_its_text_alone(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        new = await site.identity.create_key(person, KeyAsked("laptop", ("gpt", "o3")))
        assert site.keys.find(new.text) is None
        await caught_up(site)
        entry = site.keys.find(new.text)
        assert entry is not None
        assert (entry.key, entry.person, entry.account) == (new.key, person, account_stream(person))
        assert entry.usable(time.time_ns() // 1000)
        assert entry.allows("gpt")
        assert not entry.allows("gpt-4")
        assert site.keys.find(new.text + "x") is None
        assert site.keys.find(new.text[:-1]) is None
        assert new.text not in repr(new)


async def test_a_key_without_models_may_use_all(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        new = await site.identity.create_key(person, KeyAsked())
        await caught_up(site)
        entry = site.keys.find(new.text)
        assert entry is not None
        assert entry.allows("whatever")


async def test_a_revoked_key_stops_in_other_processes_within_a_second(database: Database) -> None:
    async with process_of(database.app_url) as here, process_of(database.app_url) as there:
        person = (await here.opening.open_person("anna", None)).person
        new = await here.identity.create_key(person, KeyAsked())
        await caught_up(there)
        there.view.start()
        entry = there.keys.find(new.text)
        assert entry is not None
        assert entry.usable(0)
        assert await here.identity.revoke_key(new.key, "cli")
        began = time.monotonic()
        while (entry := there.keys.find(new.text)) is None or entry.usable(0):
            assert time.monotonic() - began < 1.0, "a revoked key still worked after a second"
            await asyncio.sleep(0.005)
        assert not await here.identity.revoke_key(new.key, "cli")


async def test_an_expired_key_is_known_but_not_usable(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        expires_us = time.time_ns() // 1000 + 60_000_000
        new = await site.identity.create_key(person, KeyAsked(expires_us=expires_us))
        await caught_up(site)
        entry = site.keys.find(new.text)
        assert entry is not None
        assert entry.usable(expires_us - 1)
        assert not entry.usable(expires_us)
        with pytest.raises(BadRequest, match="future"):
            await site.identity.create_key(person, KeyAsked(expires_us=1))


async def test_a_key_of_nobody_is_refused(database: Database) -> None:
    async with process_of(database.app_url) as site:
        with pytest.raises(NotFound):
            await site.identity.create_key(PersonId(12_345), KeyAsked())
        with pytest.raises(NotFound):
            await site.identity.revoke_key(KeyId(12_345), "cli")


async def test_a_key_is_found_in_the_log_by_its_whole_text(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        keys = [await site.identity.create_key(person, KeyAsked(f"key {i}")) for i in range(3)]
        assert await site.identity.find_key(keys[1].text) == keys[1].key
        assert await site.identity.find_key(keys[1].text[:-4] + keys[2].text[-4:]) is None
        listed = [state.name async for _, state in site.identity.list_keys(person)]
        assert sorted(listed) == ["key 0", "key 1", "key 2"]


async def test_a_process_that_starts_late_knows_every_key(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        keys = [await site.identity.create_key(person, KeyAsked()) for _ in range(5)]
        await site.identity.revoke_key(keys[0].key, "cli")
    async with process_of(database.app_url) as late:
        entries = [late.keys.find(key.text) for key in keys]
        assert [entry.revoked for entry in entries if entry] == [True] + [False] * 4


async def test_keys_made_while_the_view_loads_are_not_lost(database: Database) -> None:
    async with process_of(database.app_url) as site, process_of(database.app_url) as other:
        person = (await site.opening.open_person("anna", None)).person
        loads = asyncio.gather(*(other.view.load() for _ in range(5)))
        keys = await asyncio.gather(
            *(site.identity.create_key(person, KeyAsked()) for _ in range(40))
        )
        await loads
        await caught_up(other)
        assert all(other.keys.find(key.text) is not None for key in keys)


async def test_a_key_whose_state_cannot_be_read_stops(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        new = await site.identity.create_key(person, KeyAsked())
        await caught_up(site)
        site.keys.drop(f"key:{new.key}")
        assert site.keys.find(new.text) is None
        broken = Key(person=person, hash_sealed=b"\x01" + bytes(60))
        site.keys.put("key:77", 1, KEY.decode(KEY.encode(broken)))
        assert len(site.keys) == 0


async def test_the_view_serves_what_it_has_while_postgres_is_away(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        new = await site.identity.create_key(person, KeyAsked())
        await caught_up(site)
        assert not site.view.stale
        place = site.view.place
        site.view.start()
        with outage(database):
            await until(lambda: site.view.stale)
            assert site.keys.find(new.text) is not None
        await until(lambda: not site.view.stale)
        assert place is not None
        assert site.view.place is not None
        assert site.view.place >= place
        later = await site.identity.create_key(person, KeyAsked())
        await until(lambda: site.keys.find(later.text) is not None)


async def test_a_watch_that_never_wakes_delays_and_does_not_lose(database: Database) -> None:
    async with process_of(database.app_url) as here, process_of(database.app_url) as there:
        await there.watch.stop()
        there.view.start()
        person = (await here.opening.open_person("anna", None)).person
        new = await here.identity.create_key(person, KeyAsked())
        await until(lambda: there.keys.find(new.text) is not None)


async def test_who_wrote_a_key_may_use_it_at_once_whatever_holds_the_log_up(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site, site.pool.connection() as slow:
        person = (await site.opening.open_person("anna", None)).person
        async with slow.transaction():
            # A transaction with an id keeps every reader of the log from what is newer.
            await slow.execute("SELECT pg_current_xact_id()")
            new = await site.identity.create_key(person, KeyAsked())
            await site.view.refresh()
            assert site.keys.find(new.text) is None
            await site.view.reread(f"key:{new.key}")
            assert site.keys.find(new.text) is not None
            await site.view.refresh()
            assert site.keys.find(new.text) is not None
        await caught_up(site)
        assert site.keys.find(new.text) is not None


async def test_a_key_is_known_with_all_its_rules(database: Database) -> None:
    async with process_of(database.app_url) as site:
        opened = await site.opening.open_person("root", "a password", administrator=True)
        asked = KeyAsked(
            scopes=(Scope.ADMIN, Scope.WALLET),
            quota_upt=MicroPoints(5_000_000),
            reset=Reset.MONTHLY,
            addresses=("10.1.2.3/8", "::ffff:192.0.2.1"),
            concurrency=3,
            group="team",
        )
        new = await site.identity.create_key(opened.person, asked)
        await caught_up(site)
        entry = site.keys.find(new.text)
        assert entry is not None
        assert entry.scopes == {Scope.ADMIN, Scope.WALLET}
        assert (entry.quota_upt, entry.reset) == (5_000_000, Reset.MONTHLY)
        assert entry.addresses == ("10.0.0.0/8", "192.0.2.1/32")
        assert (entry.concurrency, entry.group) == (3, "team")
        assert site.people.is_administrator(opened.person)
        assert new.created.addresses == entry.addresses


async def test_only_an_administrator_is_given_a_key_that_administers(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        with pytest.raises(BadRequest, match="administrator"):
            await site.identity.create_key(person, KeyAsked(scopes=(Scope.RELAY, Scope.ADMIN)))
        assert [key async for key in site.identity.list_keys(person)] == []
        await caught_up(site)
        assert not site.people.is_administrator(person)


async def test_a_key_created_before_scopes_works_and_is_revoked(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        text, stream = "sk-from-long-ago", key_stream(KeyId(900))
        sealed = site.secret.seal(hash_api_key(text), aad_of(stream, 1), bytes(12))
        created = KeyCreated(person, sealed, "old", "sk-…-ago")
        landed = await site.writer.submit(
            Command(site.writer.new_id(), (stream,), lambda _, __: Accept(((0, created),)))
        )
        assert isinstance(landed, Landed)
        async with site.pool.connection() as connection:
            rows = await read_stream(connection, stream, 1)
        assert [(row.type, row.schema) for row in rows] == [("KeyCreated", 1)]
        await caught_up(site)
        entry = site.keys.find(text)
        assert entry is not None
        assert entry.usable(0)
        assert entry.scopes == {Scope.RELAY, Scope.WALLET}
        assert (entry.quota_upt, entry.addresses, entry.concurrency) == (None, (), None)
        assert await site.identity.revoke_key(KeyId(900), "cli")
        await caught_up(site)
        entry = site.keys.find(text)
        assert entry is not None
        assert entry.revoked
