"""Forgetting's pure part: the decision, the fold, and the form of a wrapped key."""

from __future__ import annotations

from typing import Any

import pytest

from backend.identity.decide import (
    NoSuchPerson,
    decide_create_key,
    decide_issue_invitation,
    decide_reason,
    decide_register,
    decide_set_password,
)
from backend.identity.forget import (
    AlreadyForgotten,
    LastAdministrator,
    decide_end_key,
    decide_forget,
)
from backend.identity.key import Key
from backend.identity.person import FORGOTTEN_MARK, PERSON, ImpossibleHistory, Name, Person
from backend.identity.wrapping import (
    Epoch,
    WrappedRow,
    epoch_aad,
    open_row,
    wrap_aad,
    wrapped_in,
)
from backend.journal.commands import Accept, Refuse, Standing
from backend.kit.clock import SystemRandomness
from backend.kit.secrets import DataKey, EpochKey, SealBroken, SiteSecret
from schemas.identity import (
    KeyCreated,
    KeyRevoked,
    NameReleased,
    PasswordSet,
    PersonForgotten,
    PersonRegistered,
    ReasonGiven,
)
from schemas.ids import PersonId

ANNA = PersonId(7)
RANDOM = SystemRandomness()
SECRET = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
FORGOTTEN = Standing("person:7", 4, Person(forgotten=True))


def person(**state: Any) -> Standing:
    return Standing("person:7", 3, Person(b"sealed", b"hmac", **state))


def other(version: int = 3, **state: Any) -> Standing:
    return Standing("person:8", version, Person(b"sealed", b"hmac2", **state))


NAME = Standing("name:ab", 1, Name(7))


def test_a_person_is_forgotten_and_the_name_released() -> None:
    events = ((0, PersonForgotten("cli")), (1, NameReleased(ANNA)))
    assert decide_forget(person(), NAME, (), ANNA, "cli") == Accept(events)
    assert decide_forget(person(trial=True), NAME, (), ANNA, "cli") == Accept(events)


def test_a_name_that_is_somebody_elses_by_now_stays_theirs() -> None:
    taken = Standing("name:ab", 3, Name(9))
    assert decide_forget(person(), taken, (), ANNA, "cli") == Accept(((0, PersonForgotten("cli")),))


def test_who_was_forgotten_or_never_was_is_not_forgotten_again() -> None:
    nobody = Standing("person:7", 0, Person())
    for standing in (FORGOTTEN, nobody):
        assert decide_forget(standing, NAME, (), ANNA, "cli") == Refuse(AlreadyForgotten())


def test_the_last_administrator_stays() -> None:
    admin = person(administrator=True)
    for others in ((), (other(forgotten=True),), (other(),)):
        assert decide_forget(admin, NAME, others, ANNA, "c") == Refuse(LastAdministrator())
    assert isinstance(decide_forget(admin, NAME, (other(administrator=True),), ANNA, "c"), Accept)


def test_a_key_ends_once() -> None:
    assert decide_end_key(Standing("key:1", 1, Key(7)), "cli") == Accept(((0, KeyRevoked("cli")),))
    assert decide_end_key(Standing("key:1", 2, Key(7, revoked=True)), "cli") == Accept(())
    assert decide_end_key(Standing("key:1", 0, Key()), "cli") == Accept(())


def test_nothing_is_decided_for_who_was_forgotten() -> None:
    def seal_at(version: int) -> bytes:
        return b"sealed"

    created = KeyCreated(ANNA, b"hash", "laptop", "sk-…")
    key = Standing("key:1", 0, Key())
    assert decide_set_password(FORGOTTEN, seal_at) == Refuse(NoSuchPerson())
    assert decide_reason(FORGOTTEN, "c", seal_at) == Refuse(NoSuchPerson())
    assert decide_create_key(key, FORGOTTEN, created) == Refuse(NoSuchPerson())
    assert decide_issue_invitation(FORGOTTEN, b"hmac") == Refuse(NoSuchPerson())


def test_a_released_name_is_taken_by_a_new_person() -> None:
    free = Standing("name:ab", 2, Name())
    registered = PersonRegistered(b"sealed", b"hmac")
    fresh = Standing("person:9", 0, Person())
    assert isinstance(decide_register(fresh, free, PersonId(9), registered, None), Accept)


def test_a_forgotten_persons_state_keeps_nothing_of_them() -> None:
    state = PERSON.empty
    history = (
        PersonRegistered(b"sealed name", b"name hmac", administrator=True, trial=True),
        PasswordSet(b"sealed hash"),
        PersonForgotten("cli"),
    )
    for version, event in enumerate(history, 1):
        state = PERSON.apply(state, event, version, 0)
    assert state == Person(trial=True, forgotten=True)
    assert FORGOTTEN_MARK in PERSON.encode(state)
    assert FORGOTTEN_MARK not in PERSON.encode(Person(b"x", b"y", administrator=True))
    for event in (PersonForgotten("cli"), PasswordSet(b"h"), ReasonGiven("c", b"r")):
        with pytest.raises(ImpossibleHistory, match="forgetting"):
            PERSON.apply(state, event, 4, 0)


def test_a_wrapped_key_opens_in_its_epoch_and_in_no_other() -> None:
    first, second = (Epoch(RANDOM.bytes(16), EpochKey.generate(RANDOM)) for _ in range(2))
    key, aad = DataKey.generate(RANDOM), wrap_aad(7, 1)
    sealed = key.seal(b"text", b"a", RANDOM.bytes(12))
    wrapped = wrapped_in(first, key, aad, RANDOM.bytes(12))

    def stored(epoch: Epoch) -> bytes:
        return SECRET.wrap_data_key(epoch.key, epoch_aad(epoch.epoch), RANDOM.bytes(12))

    row = WrappedRow(7, 1, wrapped, first.epoch, stored(first))
    assert open_row(SECRET, row).open(sealed, b"a") == b"text"
    broken = [
        WrappedRow(7, 1, wrapped, None, None),
        WrappedRow(7, 1, wrapped, second.epoch, stored(second)),
        WrappedRow(7, 1, wrapped, first.epoch, stored(second)),
        WrappedRow(8, 1, wrapped, first.epoch, stored(first)),
        WrappedRow(7, 2, wrapped, first.epoch, stored(first)),
    ]
    for row in broken:
        with pytest.raises(SealBroken):
            open_row(SECRET, row)


def test_a_key_of_an_earlier_version_opens_with_the_secret_alone() -> None:
    key = DataKey.generate(RANDOM)
    wrapped = SECRET.wrap_data_key(key, wrap_aad(7, 1), RANDOM.bytes(12))
    sealed = key.seal(b"text", b"a", RANDOM.bytes(12))
    opened = open_row(SECRET, WrappedRow(7, 1, wrapped, None, None))
    assert opened.open(sealed, b"a") == b"text"
