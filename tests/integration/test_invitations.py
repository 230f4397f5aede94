"""Invitations and first points: who is given what, once, and together with the registration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from backend.folds import ALL_FOLDS
from backend.identity.decide import UnknownInvitation
from backend.journal.commands import Accept, Command, Landed, Refused
from backend.journal.reader import read_stream
from backend.journal.view import load_states
from backend.ledger.account import Account
from backend.opening import FirstPoints, Opened
from schemas.errors import BadRequest, Conflict, NotFound
from schemas.identity import PersonForgotten
from schemas.ids import PersonId, account_stream, person_stream
from schemas.ledger import AccountOpened, GrantKind, InvitationRewarded, PointsGranted
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from schemas.registry import decode
from tests.conftest import Database
from tests.given import granting
from tests.integration.identity_site import Process, process_of
from tests.integration.test_identity_people import everything_stored

POINT = 1_000_000
POINTS = FirstPoints(
    initial_upt=MicroPoints(POINT),
    invited_upt=MicroPoints(2 * POINT),
    inviter_upt=MicroPoints(3 * POINT),
)


async def account_of(site: Process, person: PersonId) -> Account:
    stream = account_stream(person)
    async with site.pool.connection() as connection:
        found = await load_states(connection, ALL_FOLDS, (stream,))
    return found[stream][1]


async def events_of(site: Process, person: PersonId) -> list[Any]:
    async with site.pool.connection() as connection:
        return [decode(row) for row in await read_stream(connection, account_stream(person), 1)]


async def inviter_with_code(site: Process) -> tuple[PersonId, str]:
    inviter = (await site.opening.open_person("inviter", None)).person
    return inviter, await site.identity.issue_invitation(inviter)


async def refused(work: Awaitable[Any]) -> str:
    with pytest.raises(BadRequest) as caught:
        await work
    return caught.value.sentence


async def test_an_invitation_rewards_both_together_with_the_registration(
    database: Database,
) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, code = await inviter_with_code(site)
        assert await site.identity.find_inviter(f" {code.upper()} ") == inviter
        opened = await site.opening.open_person("anna", None, invitation=code)
        assert opened.granted_upt == 3 * POINT
        assert await events_of(site, opened.person) == [
            AccountOpened(opened.person),
            PointsGranted(MicroPoints(POINT), GrantKind.INITIAL, "site"),
            PointsGranted(MicroPoints(2 * POINT), GrantKind.INVITED, "site"),
        ]
        rewarded = [event for event in await events_of(site, inviter) if is_reward(event)]
        assert rewarded == [InvitationRewarded(MicroPoints(3 * POINT), opened.person)]
        assert (await account_of(site, inviter)).available_upt == 4 * POINT
        assert (await account_of(site, opened.person)).available_upt == 3 * POINT


async def test_one_invitation_serves_many_and_each_is_rewarded_once(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, code = await inviter_with_code(site)
        opened = await asyncio.gather(
            *(site.opening.open_person(f"guest {n}", None, invitation=code) for n in range(8))
        )
        rewards = [event.invited for event in await events_of(site, inviter) if is_reward(event)]
        assert sorted(rewards) == sorted(guest.person for guest in opened)
        assert (await account_of(site, inviter)).available_upt == (1 + 8 * 3) * POINT


async def test_parallel_registrations_of_one_name_reward_once(database: Database) -> None:
    async with (
        process_of(database.app_url, points=POINTS) as one,
        process_of(database.app_url, points=POINTS) as two,
    ):
        inviter, code = await inviter_with_code(one)
        answers = await asyncio.gather(
            *(
                site.opening.open_person(("anna", "ANNA")[n % 2], None, invitation=code)
                for n in range(6)
                for site in (one, two)
            ),
            return_exceptions=True,
        )
        opened = [answer for answer in answers if isinstance(answer, Opened)]
        assert len(opened) == 1
        losers = [answer for answer in answers if not isinstance(answer, Opened)]
        assert all(isinstance(answer, Conflict) for answer in losers)
        rewards = [event for event in await events_of(one, inviter) if is_reward(event)]
        assert rewards == [InvitationRewarded(MicroPoints(3 * POINT), opened[0].person)]


async def test_a_new_invitation_ends_the_one_before(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, first = await inviter_with_code(site)
        second = await site.identity.issue_invitation(inviter)
        assert await site.identity.find_inviter(first) is None
        assert await site.identity.find_inviter(second) == inviter
        await refused(site.opening.open_person("anna", None, invitation=first))
        assert await site.identity.find("anna") is None
        await site.opening.open_person("anna", None, invitation=second)


async def test_an_invitation_replaced_during_a_registration_rewards_nobody(
    database: Database,
) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, first = await inviter_with_code(site)
        prepared = await site.identity.prepare_invitation(first)
        await site.identity.issue_invitation(inviter)
        unit = prepared.part
        outcome = await site.writer.submit(Command(site.writer.new_id(), unit.streams, unit.decide))
        assert outcome == Refused(UnknownInvitation())


async def test_unknown_invitations_are_refused_in_one_wording(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, ended = await inviter_with_code(site)
        code = await site.identity.issue_invitation(inviter)
        silent = (await site.opening.open_person("silent", None)).person
        of_silent = f"inv-{int(silent)}-{code[-26:]}"
        unknown = ("", "inv", "inv-zzz-" + "a" * 26, code[:-1], code[:-1] + "!", ended, of_silent)
        sentences = {
            await refused(site.opening.open_person("anna", None, invitation=text))
            for text in unknown
        }
        assert len(sentences) == 1
        assert (await account_of(site, inviter)).available_upt == POINT


async def test_who_is_forgotten_invites_nobody_any_more(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, code = await inviter_with_code(site)
        prepared = (await site.identity.prepare_invitation(code)).part
        forgetting = Command(
            site.writer.new_id(),
            (person_stream(inviter),),
            lambda standings, at_us: Accept(((0, PersonForgotten("cli")),)),
        )
        assert isinstance(await site.writer.submit(forgetting), Landed)
        late = Command(site.writer.new_id(), prepared.streams, prepared.decide)
        assert await site.writer.submit(late) == Refused(UnknownInvitation())
        assert await site.identity.find_inviter(code) is None
        await refused(site.opening.open_person("anna", None, invitation=code))
        for person in (inviter, PersonId(12_345)):
            with pytest.raises(NotFound):
                await site.identity.issue_invitation(person)


async def test_without_configured_points_an_invitation_gives_none_and_still_counts(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        inviter, code = await inviter_with_code(site)
        opened = await site.opening.open_person("anna", None, invitation=code)
        assert opened.granted_upt == 0
        assert await events_of(site, opened.person) == [AccountOpened(opened.person)]
        assert await events_of(site, inviter) == [AccountOpened(inviter)]
        await refused(site.opening.open_person("bert", None, invitation=code + "a"))


async def test_an_account_that_can_take_no_more_keeps_nobody_out(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, code = await inviter_with_code(site)
        filled = await site.writer.submit(granting(inviter, AMOUNT_UPT_MAX - POINT))
        assert isinstance(filled, Landed)
        opened = await site.opening.open_person("anna", None, invitation=code)
        assert (await account_of(site, opened.person)).available_upt == 3 * POINT
        assert (await account_of(site, inviter)).available_upt == AMOUNT_UPT_MAX


async def test_the_first_administrator_has_ten_points_and_the_next_the_initial_ones(
    database: Database,
) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        first = await site.opening.open_person("root", "a password", administrator=True)
        assert first.granted_upt == 10 * POINT
        second = await site.opening.open_person("root 2", "a password", administrator=True)
        assert second.granted_upt == POINT
        code = await site.identity.issue_invitation(first.person)
        third = await site.opening.open_person(
            "root 3", "a password", administrator=True, invitation=code
        )
        assert third.granted_upt == 3 * POINT
        assert (await account_of(site, first.person)).available_upt == 13 * POINT


async def test_a_first_administrator_who_was_invited_rewards_once(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, code = await inviter_with_code(site)
        answers = await asyncio.gather(
            *(
                site.opening.open_person(
                    f"root {n}", "a password", administrator=True, invitation=code
                )
                for n in range(2)
            )
        )
        assert sorted(opened.granted_upt for opened in answers) == [3 * POINT, 12 * POINT]
        assert (await account_of(site, inviter)).available_upt == (1 + 2 * 3) * POINT


async def test_an_invitation_lies_nowhere_in_clear(database: Database) -> None:
    async with process_of(database.app_url, points=POINTS) as site:
        inviter, code = await inviter_with_code(site)
        await site.opening.open_person("anna", None, invitation=code)
        async with site.pool.connection() as connection:
            found = await load_states(connection, ALL_FOLDS, (person_stream(inviter),))
    kept = found[person_stream(inviter)][1].invitation_hmac
    assert len(kept) == 32
    stored = everything_stored(database.superuser_url)
    for secret in (code, code[-26:], code[-26:].upper()):
        assert secret.encode() not in stored


def is_reward(event: object) -> bool:
    return isinstance(event, InvitationRewarded)
