"""A site made up from a seed: its catalogue and its people, each event really decided.

What goes on there is `large_log`'s.
"""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.catalog.decide import (
    ListedPrices,
    decide_accept_list,
    decide_add_channel,
    decide_change_channel,
    decide_define_group,
    decide_disable_channel,
    decide_enable_channel,
    decide_set_price,
)
from backend.catalog.limit import decide_set_limit
from backend.catalog.plan import decide_define_plans
from backend.identity.decide import (
    decide_create_key,
    decide_issue_invitation,
    decide_reason,
    decide_register,
    decide_revoke_key,
)
from backend.identity.names import name_hmac, name_stream
from backend.identity.wrapping import Epoch, wrap_aad, wrapped_in
from backend.journal.commands import Accept, Decision, Standing
from backend.kit.secrets import NONCE_BYTES, DataKey, SiteSecret, aad_of, hash_api_key
from backend.ledger.decide import decide_grant, decide_open
from backend.ledger.decide_invitation import decide_invitation_reward
from schemas.catalog import (
    ChannelAdded,
    ChannelSettings,
    Limits,
    PriceListAccepted,
    PriceSet,
    PriceSource,
)
from schemas.identity import KeyCreated, PersonRegistered, Reset
from schemas.ledger import GrantKind
from schemas.plans import Group, OfferedGroup, OfferedPlan, Plan, PlanItem, PlanRef
from schemas.prices import (
    Free,
    PerCall,
    PerToken,
    PerUnit,
    Price,
    PriceRef,
    Rates,
    Tier,
    Units,
    Window,
)
from schemas.relay import KeyTerms
from tests.fast_journal import FastJournal, Line

POINT: Final = 1_000_000
MODELS: Final = ("quick", "clever", "caching", "counted", "gratis", "painter")
CHANNELS: Final = 3
_ID_MASK: Final = (1 << 60) - 1
_ID_MARKS: Final = (0x7 << 76) | (0b10 << 62)


class Somebody(msgspec.Struct):
    """A person, where their streams stand, and what their keys may do."""

    number: int
    account: Line
    person: Line
    keys: list[KeyTerms]
    poor: bool


class Ground:
    """The clock, the ids, and the one way in which decisions land."""

    def __init__(
        self, journal: FastJournal, secret: SiteSecret, epoch: Epoch, seed: int, begin_us: int
    ) -> None:
        self.journal: Final = journal
        self.secret: Final = secret
        self.epoch: Final = epoch
        self.rng: Final = random.Random(seed)
        self.at_us = begin_us
        self.refused = 0

    def new_id(self) -> int:
        """A UUIDv7 whose two lowest bits are zero."""
        bits = self.rng.getrandbits(72)
        return (
            (self.at_us // 1000 << 80)
            | _ID_MARKS
            | (bits >> 60 << 64)
            | ((bits & _ID_MASK) << 2 & ((1 << 62) - 1))
        )

    def decide(
        self,
        streams: Sequence[Line],
        decide: Callable[[tuple[Standing, ...]], Decision],
        command_id: int | None = None,
    ) -> tuple[Any, ...]:
        """What landed; nothing where it was refused. The first stream is the command's home."""
        return self.take(streams, decide(tuple(line.standing for line in streams)), command_id)

    def take(
        self, streams: Sequence[Line], decision: Decision, command_id: int | None = None
    ) -> tuple[Any, ...]:
        if not isinstance(decision, Accept):
            self.refused += 1
            return ()
        self.ids = [self.new_id() for _ in decision.events]
        self.journal.land(
            self.new_id() if command_id is None else command_id,
            streams[0],
            [(streams[index], event) for index, event in decision.events],
            self.at_us,
            self.ids,
        )
        return tuple(event for _, event in decision.events)

    def seal(self, text: str, line: Line, key: DataKey | SiteSecret, version: int) -> bytes:
        return key.seal(
            text.encode(), aad_of(line.stream, version), self.rng.randbytes(NONCE_BYTES)
        )


class Site(Ground):
    """Everything an operator does."""

    def __init__(
        self, journal: FastJournal, secret: SiteSecret, epoch: Epoch, seed: int, begin_us: int
    ) -> None:
        super().__init__(journal, secret, epoch, seed, begin_us)
        self.prices: Final[dict[str, tuple[Price, PriceRef]]] = {}
        self.groups: Final[dict[str, OfferedGroup]] = {}
        self.plans: Final[dict[int, OfferedPlan]] = {}
        self.people: Final[list[Somebody]] = []
        self.data_keys: Final[list[tuple[int, bytes]]] = []
        self._last_number = 0

    def number(self) -> int:
        """People, keys and channels are counted together."""
        self._last_number += 1
        return self._last_number

    def catalogue(self) -> None:
        for _ in range(CHANNELS):
            line = self.journal.line(f"channel:{self.number()}")
            settings = ChannelSettings(
                f"made {line.stream}", "openai", "http://127.0.0.1:9/v1", MODELS
            )
            added = ChannelAdded(settings, self.seal("channel-secret", line, self.secret, 1))
            self.take((line,), decide_add_channel(line.standing, added))
        for model in MODELS:
            self.set_price(model)
        for name in ("basic", "standard", "pro", "vip"):
            self.define_group(name)
        self.define_plans()

    def set_price(self, model: str) -> None:
        line, at_us = self.journal.line(f"price:{model}"), self.at_us
        wanted = PriceSet(made_price(model, self.rng))
        self.decide((line,), lambda given: decide_set_price(given[0], wanted, at_us))
        self.prices[model] = wanted.price, PriceRef(model, line.version)

    def accept_list(self) -> None:
        """An operator takes two prices from a list."""
        chosen, at_us = self.rng.sample(MODELS[:3], 2), self.at_us
        source = PriceSource("list", "USD", f"{70 + self.rng.randrange(5)}.25")
        listed = tuple(
            ListedPrices(
                model,
                self.journal.line(f"price:{model}").version,
                (PriceSet(made_price(model, self.rng), source=source),),
            )
            for model in chosen
        )
        fact = PriceListAccepted(self.rng.randbytes(32), "USD", source.points_per_unit, (), "cli")
        lines = [self.journal.line(f"price:{model}") for model in chosen]
        landed = self.decide(
            (self.journal.line("pricelist:list"), *lines),
            lambda given: decide_accept_list(given, listed, fact, at_us),
        )
        for line, one in zip(lines, listed, strict=True):
            if landed:
                self.prices[one.model] = one.prices[0].price, PriceRef(one.model, line.version)

    def define_group(self, name: str) -> None:
        line = self.journal.line(f"group:{name}")
        models = MODELS[:5] if name == "vip" else ()
        group = Group(self.rng.randrange(700_000, 1_300_000), models)
        self.decide((line,), lambda given: decide_define_group(given[0], group))
        self.groups[name] = OfferedGroup(group, line.version)

    def define_plans(self) -> None:
        lines = [self.journal.line(f"plan:{level}") for level in (1, 2, 3)]
        wanted = tuple(made_plan(level, self.rng) for level in (1, 2, 3))
        self.decide(lines, lambda given: decide_define_plans(given, wanted))
        for level, (line, plan) in enumerate(zip(lines, wanted, strict=True), 1):
            self.plans[level] = OfferedPlan(plan, PlanRef(level, line.version))

    def set_limit(self) -> None:
        who = self.rng.choice(self.people)
        line = self.journal.line(f"limit:person:{who.number}")
        limits = Limits(requests_per_minute=self.rng.randrange(10, 100))
        self.decide((line,), lambda given: decide_set_limit(given[0], limits))

    def change_channel(self) -> None:
        line = self.journal.line(f"channel:{self.rng.randrange(1, CHANNELS + 1)}")
        state = line.state
        if not state.enabled:
            self.decide((line,), lambda given: decide_enable_channel(given[0]))
        elif self.rng.random() < 0.5:
            self.decide((line,), lambda given: decide_disable_channel(given[0], "for a while"))
        else:
            settings = msgspec.structs.replace(state.settings, weight=self.rng.randrange(1, 9))
            self.decide((line,), lambda given: decide_change_channel(given[0], settings, None))

    def register(self, inviter: Somebody | None = None) -> Somebody:
        """A person with an account and first points; who invited them is rewarded in the unit."""
        number = self.number()
        name = f"person {number}"
        person, account = (
            self.journal.line(f"person:{number}"),
            self.journal.line(f"account:{number}"),
        )
        digest = name_hmac(self.secret, name)
        data_key = DataKey(self.rng.randbytes(32))
        nonce = self.rng.randbytes(NONCE_BYTES)
        self.data_keys.append(
            (number, wrapped_in(self.epoch, data_key, wrap_aad(number, 1), nonce))
        )
        registered = PersonRegistered(self.seal(name, person, data_key, 1), digest)
        streams = [person, self.journal.line(name_stream(digest)), account]
        if inviter is not None:
            streams.append(inviter.account)

        def decide(given: tuple[Standing, ...]) -> Decision:
            opened = decide_open(given[2].state, given[2].version, number)
            parts = [decide_register(given[0], given[1], number, registered, None), opened]
            events = [*_events(parts[0], 0), *_events(parts[1], 2)]
            if inviter is not None:
                reward = decide_invitation_reward(given[3].state, given[3].version, POINT, number)
                events += _events(reward, 3)
            return Accept(tuple(events))

        self.decide(streams, decide)
        poor = self.rng.random() < 0.05
        who = Somebody(number, account, person, [], poor)
        self.grant(who, POINT if poor else 2_000 * POINT, data_key)
        self.create_key(who)
        self.people.append(who)
        return who

    def grant(self, who: Somebody, amount_upt: int, data_key: DataKey | None = None) -> None:
        """With a reason where the person's key is at hand."""
        command_id = self.new_id()

        def decide(given: tuple[Standing, ...]) -> Decision:
            account = given[0]
            granted = decide_grant(
                account.state, account.version, amount_upt, GrantKind.OPERATOR, "cli"
            )
            events = _events(granted, 0)
            if data_key is not None and events:
                about = str(UUID(int=command_id))
                reason = decide_reason(
                    given[1],
                    about,
                    lambda version: self.seal("hello", who.person, data_key, version),
                )
                events += _events(reason, 1)
            return Accept(tuple(events)) if events else granted

        streams = (who.account,) if data_key is None else (who.account, who.person)
        self.decide(streams, decide, command_id)

    def create_key(self, who: Somebody) -> None:
        number, rng = self.number(), self.rng
        line = self.journal.line(f"key:{number}")
        quota_upt = rng.randrange(1, 30) * POINT if rng.random() < 0.2 else None
        reset = Reset.DAILY if quota_upt is not None else Reset.NEVER
        group = "vip" if rng.random() < 0.1 else ""
        text = f"sk-{rng.getrandbits(128):032x}"
        nonce = rng.randbytes(NONCE_BYTES)
        created = KeyCreated(
            who.number, self.secret.seal(hash_api_key(text), aad_of(line.stream, 1), nonce),
            "made", f"sk-…{text[-4:]}", quota_upt=quota_upt, reset=reset, group=group,
        )  # fmt: skip
        self.decide(
            (line, who.person), lambda given: decide_create_key(given[0], given[1], created)
        )
        who.keys.append(KeyTerms(number, group, quota_upt, reset))

    def revoke_key(self) -> None:
        who = self.rng.choice(self.people)
        line = self.journal.line(f"key:{who.keys[0].key}")
        self.decide((line,), lambda given: decide_revoke_key(given[0], "cli"))
        self.create_key(who)
        del who.keys[0]

    def invite(self) -> None:
        who = self.rng.choice(self.people)
        digest = self.rng.randbytes(32)
        self.decide((who.person,), lambda given: decide_issue_invitation(given[0], digest))
        self.register(who)


def _events(decision: Decision, first: int) -> list[tuple[int, Any]]:
    """With streams counted from `first`."""
    if not isinstance(decision, Accept):
        return []
    return [(first + index, event) for index, event in decision.events]


def made_price(model: str, rng: random.Random) -> Price:
    """Another version of a model's price, of the form that it always has."""
    npt = rng.randrange(5_000, 90_000)
    match model:
        case "quick":
            return PerToken(npt, 2 * npt)
        case "clever":
            dearer = Tier(2_000, Rates(2 * npt, 6 * npt, npt))
            window = Window(23 * 60, 7 * 60, 480, 500_000)
            return PerToken(npt, 4 * npt, npt // 2, tiers=(dearer,), windows=(window,))
        case "caching":
            return PerToken(
                npt, 3 * npt, npt // 10, npt * 5 // 4, npt * 2, units=Units(search_npt=10**6)
            )
        case "counted":
            return PerCall(npt * 3_001)
        case "painter":
            return PerUnit(Units(image_npt=npt * 5_003))
        case _:
            return Free()


def made_plan(level: int, rng: random.Random) -> Plan:
    items = (
        PlanItem("chat", "Chat", ("quick", "clever"), 10 * level),
        PlanItem("any", "Any", ("caching",), -1 if level == 3 else 5),
    )
    price_upt = level * rng.randrange(20_000_003, 30_000_000)
    zone = ("UTC", "Asia/Shanghai", "America/New_York")[level - 1]
    return Plan(
        f"Level {level}",
        price_upt,
        items,
        relay=level > 1,
        discounts=((12, 166_667),),
        time_zone=zone,
    )
