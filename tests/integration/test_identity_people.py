"""People, names, passwords and first grants against a real database."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from backend.folds import ALL_FOLDS
from backend.grants import GrantAsked
from backend.identity.service import KeyAsked
from backend.journal.view import load_states
from backend.ledger.account import Account
from schemas.catalog import ChannelSettings
from schemas.errors import BadRequest, Conflict, IdempotencyConflict, NotFound, SiteProblem
from schemas.ids import PersonId, account_stream
from schemas.money import MicroPoints
from tests.conftest import Database
from tests.integration.identity_site import Process, process_of

POINT = 1_000_000
KEY_ASKED = KeyAsked(name="laptop")
CHANNEL_SETTINGS = ChannelSettings("one", "openai", "https://api.example.com/v1", ("gpt",))
LIST_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


async def account_of(site: Process, person: PersonId) -> Account:
    stream = account_stream(person)
    async with site.pool.connection() as connection:
        found = await load_states(connection, ALL_FOLDS, (stream,))
    return found[stream][1]


async def test_a_person_is_found_by_name_in_any_case_and_form(database: Database) -> None:
    async with process_of(database.app_url) as site:
        opened = await site.opening.open_person("Zoë Müller", "correct horse 9")
        assert await site.identity.find("ZOË MÜLLER") == opened.person
        assert await site.identity.find("Zoe\u0308 Mu\u0308ller") == opened.person
        assert await site.identity.find("Zoe Muller") is None
        assert await site.identity.name_of(opened.person) == "Zoë Müller"


async def test_of_two_who_take_a_name_at_once_one_gets_it(database: Database) -> None:
    async with process_of(database.app_url) as one, process_of(database.app_url) as two:
        answers = await asyncio.gather(
            *(
                site.opening.open_person(f"{'aA'[i % 2]}nna", None)
                for i in range(6)
                for site in (one, two)
            ),
            return_exceptions=True,
        )
        opened = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(opened) == 1
        assert all(isinstance(a, Conflict) for a in answers if isinstance(a, BaseException))
        assert await one.identity.find("Anna") == opened[0].person


@pytest.mark.parametrize(
    "name", ["", "x" * 65, " anna", "anna ", "a\nb", "a\u202eb", "a\x00b", "a\ud800", "a\u200bb"]
)
async def test_a_name_that_hides_something_is_refused(database: Database, name: str) -> None:
    async with process_of(database.app_url) as site:
        with pytest.raises(BadRequest):
            await site.opening.open_person(name, None)


async def test_only_the_right_password_is_taken_and_a_new_one_replaces_it(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        opened = await site.opening.open_person("anna", "first password")
        assert await site.identity.check_password("Anna", "first password") == opened.person
        assert await site.identity.check_password("anna", "First password") is None
        assert await site.identity.check_password("bert", "first password") is None
        await site.identity.set_password(opened.person, "second password")
        assert await site.identity.check_password("anna", "first password") is None
        assert await site.identity.check_password("anna", "second password") == opened.person
        with pytest.raises(BadRequest, match="at least 8"):
            await site.identity.set_password(opened.person, "seven77")


async def test_a_person_without_a_password_never_signs_in(database: Database) -> None:
    async with process_of(database.app_url) as site:
        await site.opening.open_person("anna", None)
        assert await site.identity.check_password("anna", "") is None
        assert await site.identity.check_password("anna", "anything at all") is None


async def test_only_the_first_administrator_is_granted_ten_points(database: Database) -> None:
    async with process_of(database.app_url) as one, process_of(database.app_url) as two:
        user = await one.opening.open_person("user", None)
        admins = await asyncio.gather(
            *(
                site.opening.open_person(
                    f"admin {i} {site is one}", "a password", administrator=True
                )
                for i in range(3)
                for site in (one, two)
            )
        )
        assert sorted(opened.granted_upt for opened in admins) == [0] * 5 + [10 * POINT]
        accounts = [await account_of(one, opened.person) for opened in admins]
        assert sorted(account.available_upt for account in accounts) == [0] * 5 + [10 * POINT]
        assert (await account_of(one, user.person)).available_upt == 0


async def test_a_refused_first_administrator_leaves_the_grant_for_the_next(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        await site.opening.open_person("anna", None)
        with pytest.raises(Conflict, match="taken"):
            await site.opening.open_person("Anna", "a password", administrator=True)
        opened = await site.opening.open_person("bert", "a password", administrator=True)
        assert opened.granted_upt == 10 * POINT


async def test_a_grant_repeated_under_its_key_is_answered_and_not_made_again(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        asked = GrantAsked(person, MicroPoints(3 * POINT), "welcome")
        first = await site.grants.grant(asked, actor="cli", idempotency_key="k1")
        again = await site.grants.grant(asked, actor="cli", idempotency_key="k1")
        assert (again.stream, again.version, again.amount_upt) == (
            first.stream,
            first.version,
            first.amount_upt,
        )
        assert again.repeated
        assert not first.repeated
        for other in (
            GrantAsked(person, MicroPoints(4 * POINT), "welcome"),
            GrantAsked(person, MicroPoints(3 * POINT), "another reason"),
        ):
            with pytest.raises(IdempotencyConflict):
                await site.grants.grant(other, actor="cli", idempotency_key="k1")
        assert (await account_of(site, person)).available_upt == 3 * POINT
        await site.grants.grant(asked, actor="person:1", idempotency_key="k1")
        assert (await account_of(site, person)).available_upt == 6 * POINT


async def test_a_grant_to_nobody_or_of_nothing_is_refused(database: Database) -> None:
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person("anna", None)).person
        for amount in (0, -1, 10**16):
            with pytest.raises(BadRequest):
                await site.grants.grant(GrantAsked(person, MicroPoints(amount), "why"), actor="cli")
        with pytest.raises(BadRequest, match="reason"):
            await site.grants.grant(GrantAsked(person, MicroPoints(1), "  "), actor="cli")
        with pytest.raises(NotFound):
            await site.grants.grant(
                GrantAsked(PersonId(999_999), MicroPoints(1), "why"), actor="cli"
            )


async def test_another_secret_is_noticed(database: Database) -> None:
    async with process_of(database.app_url) as site:
        await site.identity.data_keys.check_secret()
        await site.opening.open_person("anna", "a password")
        await site.identity.data_keys.check_secret()
    async with process_of(database.app_url, secret="n" + uuid4().hex + "Q") as other:
        with pytest.raises(SiteProblem, match="SECRET"):
            await other.identity.data_keys.check_secret()


async def test_nothing_private_lies_in_the_log_or_the_states(database: Database) -> None:
    canaries = {
        "name": "Canary Clementine",
        "password": "canary password 17",
        "reason": "canary reason for the grant",
        "secret": "canary-channel-secret-42",
    }
    async with process_of(database.app_url) as site:
        person = (await site.opening.open_person(canaries["name"], canaries["password"])).person
        await site.identity.set_password(person, canaries["password"] + "!")
        key = await site.identity.create_key(person, KEY_ASKED)
        await site.grants.grant(
            GrantAsked(person, MicroPoints(POINT), canaries["reason"]), actor="cli"
        )
        added = await site.opening.add_channel(CHANNEL_SETTINGS, canaries["secret"])
        await site.catalog.change_channel(added.channel, CHANNEL_SETTINGS, canaries["secret"] + "2")
    canaries["key"] = key.text
    dump = everything_stored(database.superuser_url)
    assert b"laptop" in dump, "the dump does not show what is stored in clear"
    for what, text in canaries.items():
        for form in forms_of(text):
            assert form not in dump, f"the {what} lies in the database in clear"


def forms_of(text: str) -> list[bytes]:
    """A text as it is, folded, hashed without a key, and in base64 at each alignment."""
    raw = text.encode()
    digest = hashlib.sha256(raw).digest()
    return [
        raw,
        raw.lower(),
        digest,
        digest.hex().encode(),
        base64.b64encode(digest)[:40],
        *(base64.b64encode(b"_" * shift + raw)[4:-4] for shift in range(3)),
    ]


def everything_stored(superuser_url: str) -> bytes:
    """All rows of all our tables, binary columns as they are."""
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        tables = connection.execute(LIST_TABLES).fetchall()
        assert len(tables) > 5
        parts: list[bytes] = []
        for (table,) in tables:
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier("public", table))
            for row in connection.execute(query):
                parts += [
                    bytes(value) if isinstance(value, bytes) else str(value).encode()
                    for value in row
                ]
    return b"\n".join(parts)
