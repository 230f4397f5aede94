"""Identity's pure part: names, folds, decisions, idempotency keys, and units of several parts."""

from __future__ import annotations

from uuid import RFC_4122

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.identity.decide import (
    AlreadyRevoked,
    KeyExists,
    NameIsTaken,
    NoSuchKey,
    NoSuchPerson,
    decide_add_key,
    decide_create_key,
    decide_reason,
    decide_register,
    decide_revoke_key,
    decide_set_password,
)
from backend.identity.key import KEY, Key
from backend.identity.key_view import KeyEntry
from backend.identity.names import check_name, fold_name, name_hmac
from backend.identity.person import NAME, PERSON, ImpossibleHistory, Name, Person
from backend.journal.commands import Accept, LeaseClose, Refuse, Standing
from backend.journal.idempotency import command_id_of
from backend.journal.units import Part, joined
from backend.kit.secrets import SiteSecret
from schemas.errors import BadRequest
from schemas.identity import (
    KeyCreated,
    KeyRevoked,
    NameReleased,
    NameTaken,
    PasswordSet,
    PersonRegistered,
    ReasonGiven,
)
from schemas.ids import KeyId, PersonId, StreamName

ANNA = PersonId(7)
REGISTERED = PersonRegistered(b"sealed", b"hmac", administrator=True)
CREATED = KeyCreated(ANNA, b"sealed", "laptop", "sk-…abcd", ("gpt",), 5_000)
SECRET = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
PERSON_AT_3 = Standing("person:7", 3, Person(name_hmac=b"hmac"))
NOBODY = Standing("person:7", 0, Person())


def sealed_at(version: int) -> bytes:
    return b"sealed at %d" % version


def test_a_free_name_is_taken_with_the_registration() -> None:
    free = Standing("name:ab", 4, Name())
    password = PasswordSet(b"hash")
    assert decide_register(NOBODY, free, ANNA, REGISTERED, password) == Accept(
        ((0, REGISTERED), (0, password), (1, NameTaken(ANNA)))
    )
    assert decide_register(NOBODY, free, ANNA, REGISTERED, None) == Accept(
        ((0, REGISTERED), (1, NameTaken(ANNA)))
    )


def test_a_taken_name_is_refused() -> None:
    taken = Standing("name:ab", 1, Name(person=3))
    assert decide_register(NOBODY, taken, ANNA, REGISTERED, None) == Refuse(NameIsTaken())


def test_what_is_sealed_is_sealed_for_the_version_it_will_have() -> None:
    assert decide_set_password(PERSON_AT_3, sealed_at) == Accept(
        ((0, PasswordSet(b"sealed at 4")),)
    )
    assert decide_reason(PERSON_AT_3, "c", sealed_at) == Accept(
        ((0, ReasonGiven("c", b"sealed at 4")),)
    )
    assert decide_set_password(NOBODY, sealed_at) == Refuse(NoSuchPerson())
    assert decide_reason(NOBODY, "c", sealed_at) == Refuse(NoSuchPerson())


def test_a_key_is_created_once_for_somebody_and_revoked_once() -> None:
    fresh, made = Standing("key:1", 0, Key()), Standing("key:1", 1, Key(person=7))
    gone = Standing("key:1", 2, Key(person=7, revoked=True))
    assert decide_create_key(fresh, PERSON_AT_3, CREATED) == Accept(((0, CREATED),))
    assert decide_create_key(fresh, NOBODY, CREATED) == Refuse(NoSuchPerson())
    assert decide_add_key(made, CREATED) == Refuse(KeyExists())
    assert decide_revoke_key(made, "cli") == Accept(((0, KeyRevoked("cli")),))
    assert decide_revoke_key(fresh, "cli") == Refuse(NoSuchKey())
    assert decide_revoke_key(gone, "cli") == Refuse(AlreadyRevoked())


def test_a_person_folds_from_their_events() -> None:
    state = PERSON.empty
    events = (REGISTERED, PasswordSet(b"one"), ReasonGiven("c", b"why"), PasswordSet(b"two"))
    for version, event in enumerate(events, 1):
        state = PERSON.apply(state, event, version, 0)
    assert state == Person(b"sealed", b"hmac", True, False, b"two", 4)
    assert PERSON.decode(PERSON.encode(state)) == state
    with pytest.raises(ImpossibleHistory):
        PERSON.apply(state, REGISTERED, 5, 0)
    with pytest.raises(ImpossibleHistory):
        PERSON.apply(state, NameTaken(ANNA), 5, 0)


def test_a_name_belongs_to_one_person_at_a_time() -> None:
    state = NAME.apply(NAME.empty, NameTaken(ANNA), 1, 0)
    with pytest.raises(ImpossibleHistory):
        NAME.apply(state, NameTaken(PersonId(8)), 2, 0)
    with pytest.raises(ImpossibleHistory):
        NAME.apply(state, NameReleased(PersonId(8)), 2, 0)
    freed = NAME.apply(state, NameReleased(ANNA), 2, 0)
    assert NAME.apply(freed, NameTaken(PersonId(8)), 3, 0) == Name(8)


def test_a_key_folds_from_its_events() -> None:
    state = KEY.apply(KEY.empty, CREATED, 1, 0)
    assert state == Key(7, b"sealed", "laptop", "sk-…abcd", ("gpt",), 5_000)
    revoked = KEY.apply(state, KeyRevoked("cli"), 2, 0)
    assert revoked.revoked
    assert KEY.decode(KEY.encode(revoked)) == revoked
    for event, version in ((CREATED, 3), (KeyRevoked("cli"), 3), (REGISTERED, 3)):
        with pytest.raises(ImpossibleHistory):
            KEY.apply(revoked, event, version, 0)


def test_a_key_works_until_its_very_end() -> None:
    entry = KeyEntry(KeyId(1), ANNA, StreamName("account:7"), frozenset(), 5_000, revoked=False)
    assert entry.usable(4_999)
    assert not entry.usable(5_000)


@given(st.text(min_size=1, max_size=64))
def test_folding_a_name_again_changes_nothing(name: str) -> None:
    assert fold_name(fold_name(name)) == fold_name(name)


@pytest.mark.parametrize(
    ("one", "other"), [("Straße", "STRASSE"), ("\u212bngstrom", "ångstrom"), ("ﬁx", "FIX")]
)
def test_names_that_look_the_same_are_the_same(one: str, other: str) -> None:
    assert name_hmac(SECRET, one) == name_hmac(SECRET, other)
    assert name_hmac(SECRET, one) != name_hmac(SECRET, other + "x")


@pytest.mark.parametrize("name", ["李雷", "Zoë", "a", "x" * 64, "a b", "o'neil"])
def test_names_of_people_are_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, " a", "a\t", "a\u2028b", "a\u202e", "\ud800"])
def test_names_that_hide_something_are_not(name: str) -> None:
    with pytest.raises(BadRequest):
        check_name(name)


def test_a_command_id_depends_on_every_part_of_its_key_and_on_where_parts_end() -> None:
    ids = {
        command_id_of("cli", "grant", "k"),
        command_id_of("cli", "grant", "k2"),
        command_id_of("cli", "redeem", "k"),
        command_id_of("person:1", "grant", "k"),
        command_id_of("cligrant", "", "k"),
        command_id_of("cli", "grantk", ""),
    }
    assert len(ids) == 6
    assert command_id_of("cli", "grant", "k") == command_id_of("cli", "grant", "k")
    for made in ids:
        assert made.version == 8
        assert made.variant == RFC_4122
        assert made.int & 0b11 == 0


def test_parts_of_a_unit_see_their_own_streams_and_land_together() -> None:
    seen: list[tuple[str, ...]] = []

    def part(*streams: str, events: tuple[tuple[int, object], ...]) -> Part:
        def decide(standings: tuple[Standing, ...], at_us: int) -> Accept:
            seen.append(tuple(standing.stream for standing in standings))
            return Accept(events, (LeaseClose(streams[0]),))

        return Part(streams, decide)

    first = part("a", "b", events=((1, "x"), (0, "y")))
    unit = joined((first, part("c", events=()), part("d", events=((0, "z"),))))
    standings = tuple(Standing(stream, 1, None) for stream in unit.streams)
    decision = unit.decide(standings, 0)
    assert unit.streams == ("a", "b", "c", "d")
    assert seen == [("a", "b"), ("c",), ("d",)]
    assert decision == Accept(
        ((1, "x"), (0, "y"), (3, "z")), (LeaseClose("a"), LeaseClose("c"), LeaseClose("d"))
    )


def test_one_refusal_refuses_the_unit_and_no_stream_has_two_parts() -> None:
    good = Part(("a",), lambda standings, at_us: Accept(((0, "x"),)))
    bad = Part(("b",), lambda standings, at_us: Refuse("no"))
    standings = (Standing("a", 1, None), Standing("b", 1, None))
    assert joined((good, bad)).decide(standings, 0) == Refuse("no")
    with pytest.raises(ValueError, match="one part"):
        joined((good, good))
