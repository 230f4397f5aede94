"""What may be asked of a key, how it is kept, and what a key from before says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backend.http.address import ClientAddresses
from backend.http.relay.callers import Callers
from backend.identity.decide import NoAdministrator, decide_add_key, decide_create_key
from backend.identity.key import KEY, SCOPES_AT_FIRST, Key
from backend.identity.key_asked import KeyAsked, canonical_networks, checked, parse_scopes
from backend.identity.key_view import KeyView
from backend.identity.person import Person
from backend.identity.person_view import PersonView
from backend.journal.commands import Accept, Refuse, Standing
from backend.kit.secrets import SiteSecret, aad_of, hash_api_key
from schemas.errors import BadRequest, InvalidApiKey, MissingScope
from schemas.identity import KeyCreated, KeyRevoked, Reset, Scope
from schemas.ids import PersonId
from schemas.money import MicroPoints
from schemas.registry import decode, encode
from tests.given import CLOCK
from tests.unit.test_golden_events import golden_files, row_of

ANNA = PersonId(7)
NOW_US = 1_000
SECRET = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
RULED = KeyCreated(
    ANNA,
    b"sealed",
    "laptop",
    "sk-…abcd",
    scopes=(Scope.WALLET, Scope.ADMIN),
    quota_upt=MicroPoints(5),
    reset=Reset.WEEKLY,
    addresses=("10.0.0.0/8",),
    concurrency=3,
    group="team",
)


def test_what_is_asked_of_a_key_is_put_into_one_form() -> None:
    asked = KeyAsked(
        scopes=(Scope.ADMIN, Scope.RELAY, Scope.ADMIN),
        addresses=(
            "10.1.2.3/8",
            " 203.0.113.7",
            "::ffff:192.0.2.9",
            "2001:DB8::1/32",
            "10.0.0.0/8",
        ),
    )
    kept = checked(asked, NOW_US)
    assert kept.scopes == (Scope.RELAY, Scope.ADMIN)
    assert kept.addresses == ("10.0.0.0/8", "203.0.113.7/32", "192.0.2.9/32", "2001:db8::/32")
    assert checked(kept, NOW_US) == kept


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
    ],
)
def test_networks_are_kept_as_what_they_mean(text: str, network: str) -> None:
    assert canonical_networks((text,)) == (network,)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"quota_upt": 0}, "more than zero"),
        ({"quota_upt": -1}, "more than zero"),
        ({"quota_upt": 10**15 + 1}, "can be held"),
        ({"reset": Reset.DAILY}, "needs a quota"),
        ({"concurrency": 0}, "from 1"),
        ({"concurrency": 10**9}, "from 1"),
        ({"group": "Team"}, "a-z"),
        ({"group": "x" * 33}, "a-z"),
        ({"group": "a\n"}, "a-z"),
        ({"scopes": ()}, "at least one"),
        ({"addresses": ("10.0.0.0/33",)}, "no network"),
        ({"addresses": ("example.com",)}, "no network"),
        ({"addresses": ("",)}, "no network"),
        ({"addresses": ("fe80::1%eth0",)}, "no network"),
        ({"addresses": tuple(f"10.0.0.{n}" for n in range(101))}, "at most 100"),
        ({"expires_us": NOW_US}, "future"),
        ({"models": ("a", "a")}, "each once"),
    ],
)
def test_what_no_key_can_have_is_refused_in_words(more: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        checked(msgspec.structs.replace(KeyAsked(), **more), NOW_US)


def test_scopes_are_read_in_any_order_and_unknown_ones_are_named() -> None:
    assert parse_scopes(" admin, relay,relay") == (Scope.RELAY, Scope.ADMIN)
    with pytest.raises(BadRequest, match="'root'; there are relay, wallet, admin"):
        parse_scopes("relay,root")
    with pytest.raises(BadRequest, match="at least one"):
        parse_scopes(" ,")


def test_only_an_administrator_gets_a_key_that_administers() -> None:
    fresh = Standing("key:1", 0, Key())
    someone = Standing("person:7", 1, Person())
    administrator = Standing("person:7", 1, Person(administrator=True))
    assert decide_create_key(fresh, someone, RULED) == Refuse(NoAdministrator())
    assert decide_create_key(fresh, administrator, RULED) == Accept(((0, RULED),))
    assert decide_add_key(fresh, RULED) == Refuse(NoAdministrator())


def test_a_key_keeps_all_that_it_was_created_with() -> None:
    state = KEY.apply(KEY.empty, RULED, 1, 0)
    assert (state.scopes, state.quota_upt, state.reset) == (RULED.scopes, 5, Reset.WEEKLY)
    assert (state.addresses, state.concurrency, state.group) == (("10.0.0.0/8",), 3, "team")
    assert KEY.decode(KEY.encode(state)) == state


def test_one_history_gives_the_same_stored_key_however_its_scopes_were_made() -> None:
    plain = KeyCreated(ANNA, b"sealed", "laptop", "sk-…abcd")
    written = msgspec.structs.replace(plain, scopes=(Scope.RELAY, Scope.WALLET))
    read = decode(row_of("KeyCreated", 2, encode(written), "key:5"))
    states = [KEY.apply(KEY.empty, event, 1, 0) for event in (plain, written, read)]
    again = [KEY.decode(KEY.encode(state)) for state in states]
    stored = {KEY.encode(KEY.apply(state, KeyRevoked("cli"), 2, 0)) for state in (*states, *again)}
    assert len(stored) == 1


def test_a_key_from_before_scopes_relays_and_reads_its_wallet() -> None:
    golden = golden_files()["KeyCreated", 1]
    event = decode(row_of("KeyCreated", 1, golden.payload.encode(), "key:5"))
    state = KEY.apply(KEY.empty, event, 1, 0)
    assert state.scopes == SCOPES_AT_FIRST
    assert (state.quota_upt, state.addresses, state.concurrency, state.group) == (
        None,
        (),
        None,
        "",
    )


def test_a_key_stored_before_scopes_is_the_one_that_a_replay_makes() -> None:
    stored_then = (
        b'{"person":42,"hash_sealed":"AWhhc2g=","name":"laptop","hint":"sk-\xe2\x80\xa6wxyz",'
        b'"models":["gpt-4o-mini"],"expires_us":1800000000000000}'
    )
    golden = golden_files()["KeyCreated", 1]
    event = decode(row_of("KeyCreated", 1, golden.payload.encode(), "key:5"))
    assert KEY.encode(KEY.apply(KEY.empty, event, 1, 0)) == stored_then
    assert KEY.encode(KEY.decode(stored_then)) == stored_then
    assert KEY.decode(stored_then).scopes == SCOPES_AT_FIRST


class _Keys:
    """Keys and people in memory, and who asks for them."""

    def __init__(self) -> None:
        self.keys = KeyView(SECRET)
        self.people = PersonView()

    def add(self, number: int, person: int, *scopes: Scope) -> list[tuple[bytes, bytes]]:
        """A key in memory; the headers of a call with it."""
        text, stream = f"sk-{number}", f"key:{number}"
        sealed = SECRET.seal(hash_api_key(text), aad_of(stream, 1), bytes(12))
        self.keys.put(stream, 1, Key(person, sealed, scopes=scopes))
        return [(b"authorization", f"Bearer {text}".encode())]

    async def caught_up(self) -> None:
        return

    def callers(self) -> Callers:
        return Callers(self.keys, self.people, CLOCK, self.caught_up, ClientAddresses(()))


async def test_a_key_opens_only_what_its_scopes_say() -> None:
    ground = _Keys()
    wallet, relay = ground.add(1, 7, Scope.WALLET), ground.add(2, 7, Scope.RELAY)
    callers = ground.callers()
    assert (await callers.of(relay)).key == 2
    assert (await callers.of(wallet, Scope.WALLET)).key == 1
    assert (await callers.of(relay, Scope.WALLET, Scope.RELAY)).key == 2
    with pytest.raises(MissingScope, match="`relay`") as caught:
        await callers.of(wallet)
    assert (caught.value.status, caught.value.code) == (403, "missing_scope")
    assert "--scopes" in caught.value.sentence
    with pytest.raises(MissingScope, match="`wallet`"):
        await callers.of(relay, Scope.WALLET)
    with pytest.raises(InvalidApiKey):
        await callers.of([(b"authorization", b"Bearer sk-3")], Scope.WALLET)


async def test_the_admin_scope_counts_only_while_the_owner_administers() -> None:
    ground = _Keys()
    key, callers = ground.add(1, 7, Scope.ADMIN), ground.callers()
    with pytest.raises(MissingScope, match="administrator"):
        await callers.of(key, Scope.ADMIN)
    ground.people.put("person:7", 1, Person(administrator=True))
    assert (await callers.of(key, Scope.ADMIN)).key == 1
    ground.people.put("person:7", 2, Person(forgotten=True))
    with pytest.raises(MissingScope):
        await callers.of(key, Scope.ADMIN)
    ground.people.put("person:7", 3, Person(administrator=True))
    ground.people.drop("person:7")
    with pytest.raises(MissingScope):
        await callers.of(key, Scope.ADMIN)
