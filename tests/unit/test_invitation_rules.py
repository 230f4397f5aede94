"""Invitations: their text, who may be found by one, and the reward's decision."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.identity.decide import (
    NoSuchPerson,
    UnknownInvitation,
    decide_accept_invitation,
    decide_issue_invitation,
)
from backend.identity.invitations import invitation_hmac, inviter_named_in, make_invitation
from backend.identity.person import PERSON, Person
from backend.journal.commands import Accept, Refuse, Standing
from backend.kit.clock import SystemRandomness
from backend.kit.secrets import SiteSecret
from backend.ledger.account import Account
from backend.ledger.decide_invitation import decide_invitation_reward
from backend.ledger.refusals import NoSuchAccount, TooMuch
from schemas.identity import InvitationIssued, PersonRegistered
from schemas.ids import PersonId
from schemas.ledger import InvitationRewarded
from schemas.money import AMOUNT_UPT_MAX, MicroPoints
from tests.given import folded, with_upt

SECRET = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
RANDOMNESS = SystemRandomness()
INVITED = PersonId(9)


@given(st.integers(1, 2**63 - 1))
def test_an_invitation_names_its_person_in_any_case(person: int) -> None:
    code = make_invitation(PersonId(person), RANDOMNESS)
    assert re.fullmatch(r"inv-[0-9a-z]+-[a-z2-7]{26}", code)
    assert inviter_named_in(f" {code.upper()}\n") == person
    assert invitation_hmac(SECRET, code.upper()) == invitation_hmac(SECRET, code)


def test_no_two_invitations_are_alike() -> None:
    made = {make_invitation(PersonId(1), RANDOMNESS) for _ in range(200)}
    assert len(made) == 200
    assert len({invitation_hmac(SECRET, code) for code in made}) == 200


@pytest.mark.parametrize(
    "text",
    ["", "inv", "inv-1-", "inv-1-" + "a" * 25, "inv-1-" + "a" * 27, "inv-1-" + "1" * 26,
     "inv-0-" + "a" * 26, "inv-" + "z" * 13 + "-" + "a" * 26, "inv--" + "a" * 26,
     "inv-" + "1" * 5_000 + "-" + "a" * 26, "inv-²-" + "a" * 26, "\ud800"],
)  # fmt: skip
def test_what_is_no_invitation_names_nobody(text: str) -> None:
    assert inviter_named_in(text) is None


def test_a_new_invitation_ends_the_one_before() -> None:
    state = PERSON.apply(PERSON.empty, PersonRegistered(b"sealed", b"h"), 1, 0)
    for version, digest in ((2, b"one"), (3, b"two")):
        standing = Standing("person:7", version - 1, state)
        assert decide_issue_invitation(standing, digest) == Accept(((0, InvitationIssued(digest)),))
        state = PERSON.apply(state, InvitationIssued(digest), version, 0)
    assert PERSON.decode(PERSON.encode(state)) == state
    inviter = Standing("person:7", 3, state)
    assert decide_accept_invitation(inviter, b"two") == Accept(())
    assert decide_accept_invitation(inviter, b"one") == Refuse(UnknownInvitation())


def test_nobody_and_a_forgotten_person_invite_nobody() -> None:
    nobody = Standing("person:7", 0, Person())
    forgotten = Standing("person:7", 4, Person(invitation_hmac=b"one", forgotten=True))
    without = Standing("person:7", 1, Person(name_hmac=b"h"))
    for standing in (nobody, forgotten, without):
        for digest in (b"one", b""):
            refusal = decide_accept_invitation(standing, digest)
            assert refusal == Refuse(UnknownInvitation())
    for standing in (nobody, forgotten):
        assert decide_issue_invitation(standing, b"x") == Refuse(NoSuchPerson())


def test_a_reward_adds_points_to_an_account_that_can_take_them() -> None:
    state = with_upt(5)
    reward = decide_invitation_reward(state, 2, MicroPoints(7), INVITED)
    assert reward == Accept(((0, InvitationRewarded(MicroPoints(7), INVITED)),))
    after = with_upt(5, InvitationRewarded(MicroPoints(7), INVITED))
    assert after.available_upt == 12


def test_a_reward_to_nobody_or_of_no_sum_is_refused() -> None:
    assert decide_invitation_reward(Account(), 0, MicroPoints(7), INVITED) == Refuse(
        NoSuchAccount()
    )
    full = with_upt(AMOUNT_UPT_MAX)
    for state, amount in ((folded([]), 0), (folded([]), -1), (full, 1)):
        decision = decide_invitation_reward(state, 2, MicroPoints(amount), INVITED)
        assert decision == Refuse(TooMuch())
