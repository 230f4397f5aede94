"""The catalogue's pure part: what may be said of channels and prices, folds and decisions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backend.catalog.accepted_list import PRICELIST, AcceptedList
from backend.catalog.channel import CHANNEL, Channel, ImpossibleHistory
from backend.catalog.checks import (
    check_base_url,
    check_channel,
    check_group,
    check_group_name,
    check_model,
    check_secret_text,
    parse_mapping,
    parse_models,
)
from backend.catalog.decide import (
    ChannelExists,
    NoSuchChannel,
    NothingToChange,
    decide_add_channel,
    decide_change_channel,
    decide_define_group,
    decide_disable_channel,
    decide_enable_channel,
)
from backend.catalog.group import GROUP, DefinedGroup
from backend.catalog.plan import PLAN, DefinedPlan
from backend.catalog.price import PRICE, ModelPrice
from backend.journal.commands import Accept, Refuse, Standing
from backend.journal.fold import Fold
from schemas.catalog import (
    ChannelAdded,
    ChannelChanged,
    ChannelDisabled,
    ChannelEnabled,
    ChannelSettings,
    GroupDefined,
    PlanDefined,
    PriceListAccepted,
    PriceSet,
)
from schemas.errors import BadRequest
from schemas.money import MicroPoints
from schemas.plans import Group, Plan
from schemas.prices import PPM, Free

SETTINGS = ChannelSettings("one", "openai", "https://h.example/v1", ("a", "b"))
OTHER = msgspec.structs.replace(SETTINGS, weight=2)
ADDED = ChannelAdded(SETTINGS, b"one")
ABSENT = Standing("channel:1", 0, Channel())
ENABLED = Standing("channel:1", 3, Channel(SETTINGS, b"one", 1, enabled=True))
DISABLED = Standing("channel:1", 4, Channel(SETTINGS, b"one", 1, enabled=False))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1///", "https://api.example.com/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
        ("HTTPS://Api.Example.com/v1", "HTTPS://Api.Example.com/v1"),
    ],
)
def test_a_base_url_is_kept_without_its_last_slash(text: str, kept: str) -> None:
    assert check_base_url(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "", "api.example.com/v1", "ftp://h/v1", "file:///etc/passwd", "http://", "http:///v1",
        "http://user:pw@h/v1", "http://user@h/v1", "http://h/v1?key=x", "http://h/v1#x",
        "http://h/v1?", "http://h/v1#", "http://h:port/v1", "http://h:99999/v1", "http://h:0/v1",
        "http://h/v 1", "http://h/\nv1", "http://h\x00/v1", "http://bücher.example/v1",
        "http://[::1/v1", "http://h/" + "x" * 2_000,
    ],
)  # fmt: skip
def test_an_address_that_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        check_base_url(text)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "other"},
        {"name": ""},
        {"name": "7"},
        {"name": "x" * 65},
        {"name": " a"},
        {"models": ()},
        {"models": ("a", "a")},
        {"models": ("a", "")},
        {"models": ("a\n",)},
        {"models": ("x" * 257,)},
        {"weight": 0},
        {"weight": -1},
        {"priority": 10**9},
        {"mapping": (("c", "x"),)},
        {"mapping": (("a", "x"), ("a", "y"))},
        {"mapping": (("a", ""),)},
        {"api_version": ""},
    ],
)
def test_a_channel_that_cannot_work_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        check_channel(msgspec.structs.replace(SETTINGS, **change))


def test_a_channel_is_kept_in_one_form() -> None:
    given = msgspec.structs.replace(SETTINGS, base_url="https://h.example/v1/")
    assert check_channel(given) == SETTINGS
    demo = msgspec.structs.replace(SETTINGS, type="demo", base_url="whatever")
    assert check_channel(demo).base_url == ""


def test_mappings_and_models_are_read_as_people_write_them() -> None:
    assert parse_models(" a, b,,c/d:e ") == ("a", "b", "c/d:e")
    assert parse_mapping(("a>x, b > y", "c>z>1\nd>w")) == (
        ("a", "x"),
        ("b", "y"),
        ("c", "z>1"),
        ("d", "w"),
    )
    for text in ("a", "a>", ">x", ">"):
        with pytest.raises(BadRequest):
            parse_mapping((text,))


@pytest.mark.parametrize("text", ["a b", "a\nb", "ключ", "a\x7f", "x" * 5_000])
def test_a_secret_that_fits_in_no_header_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        check_secret_text(text)
    assert check_secret_text("") == ""
    assert check_secret_text("sk-Ab1+/=") == "sk-Ab1+/="


@pytest.mark.parametrize("model", ["", "a,b", " a", "x" * 257, "a\x00"])
def test_a_model_that_cannot_be_listed_is_refused(model: str) -> None:
    with pytest.raises(BadRequest):
        check_model(model)


@pytest.mark.parametrize("name", ["", "a,b", " a", "x" * 33, "a\x00", "VIP", "a\n"])
def test_a_group_that_cannot_be_named_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        check_group_name(name)
    assert check_group_name("vip") == "vip"


@pytest.mark.parametrize(
    "group",
    [
        Group(-1),
        Group(1_001 * PPM),
        Group(PPM, ("a", "a")),
        Group(PPM, ("a,b",)),
        Group(PPM, ("",)),
    ],
)
def test_a_group_that_cannot_be_charged_is_refused(group: Group) -> None:
    with pytest.raises(BadRequest):
        check_group(group)
    assert check_group(Group(0, ("a",))) == Group(0, ("a",))


def test_a_channel_is_added_once() -> None:
    assert decide_add_channel(ABSENT, ADDED) == Accept(((0, ADDED),))
    assert decide_add_channel(ENABLED, ADDED) == Refuse(ChannelExists())


def test_a_channel_is_changed_only_where_something_changes() -> None:
    def seal_at(version: int) -> bytes:
        return b"at %d" % version

    assert decide_change_channel(ENABLED, OTHER, None) == Accept(((0, ChannelChanged(OTHER)),))
    assert decide_change_channel(ENABLED, SETTINGS, seal_at) == Accept(
        ((0, ChannelChanged(SETTINGS, b"at 4")),)
    )
    assert decide_change_channel(ENABLED, SETTINGS, None) == Refuse(NothingToChange(3))
    assert decide_change_channel(ABSENT, SETTINGS, None) == Refuse(NoSuchChannel())


def test_a_channel_is_switched_only_where_it_is_not_so_already() -> None:
    assert decide_enable_channel(DISABLED) == Accept(((0, ChannelEnabled()),))
    assert decide_enable_channel(ENABLED) == Refuse(NothingToChange(3))
    assert decide_enable_channel(ABSENT) == Refuse(NoSuchChannel())
    assert decide_disable_channel(ENABLED, "why") == Accept(((0, ChannelDisabled("why")),))
    assert decide_disable_channel(DISABLED, "why") == Refuse(NothingToChange(4))
    assert decide_disable_channel(ABSENT, "why") == Refuse(NoSuchChannel())


def test_a_group_is_a_new_version_only_where_it_differs() -> None:
    standing = Standing("group:vip", 2, DefinedGroup(Group(PPM // 2)))
    assert decide_define_group(standing, Group()) == Accept(((0, GroupDefined(Group())),))
    assert decide_define_group(standing, Group(PPM // 2)) == Refuse(NothingToChange(2))
    new = Standing("group:vip", 0, DefinedGroup())
    assert decide_define_group(new, Group()) == Accept(((0, GroupDefined(Group())),))


def test_groups_plans_and_lists_fold_to_what_was_said_last() -> None:
    plan = Plan("Basic", MicroPoints(100), ())
    assert GROUP.apply(DefinedGroup(), GroupDefined(Group(5)), 1, 0) == DefinedGroup(Group(5))
    assert PLAN.apply(DefinedPlan(), PlanDefined(plan), 1, 0) == DefinedPlan(plan)
    accepted = PriceListAccepted(b"digest", "USD", "71.2", ("m",), "cli")
    state = PRICELIST.apply(AcceptedList(b"old", 3), accepted, 4, 0)
    assert state == AcceptedList(b"digest", 4)
    assert PRICELIST.decode(PRICELIST.encode(state)) == state
    folds: list[Fold[Any]] = [GROUP, PLAN, PRICELIST]
    for fold in folds:
        with pytest.raises(ImpossibleHistory):
            fold.apply(fold.empty, ADDED, 1, 0)


def test_a_channel_folds_and_remembers_where_its_secret_was_sealed() -> None:
    state = CHANNEL.empty
    events = (
        ADDED,
        ChannelChanged(OTHER),
        ChannelDisabled("why"),
        ChannelChanged(SETTINGS, b"two"),
    )
    states: list[Channel] = []
    for version, event in enumerate(events, 1):
        state = CHANNEL.apply(state, event, version, 0)
        states.append(state)
    assert states[1] == Channel(OTHER, b"one", 1, enabled=True)
    assert states[3] == Channel(SETTINGS, b"two", 4, enabled=False, reason="why")
    enabled = CHANNEL.apply(state, ChannelEnabled(), 5, 0)
    assert (enabled.enabled, enabled.reason) == (True, "")
    assert CHANNEL.decode(CHANNEL.encode(enabled)) == enabled


def test_a_history_that_cannot_be_is_refused() -> None:
    for state, event, version in (
        (Channel(), ChannelEnabled(), 1),
        (Channel(SETTINGS), ADDED, 2),
        (Channel(SETTINGS), PriceSet(Free()), 2),
    ):
        with pytest.raises(ImpossibleHistory):
            CHANNEL.apply(state, event, version, 0)
    with pytest.raises(ImpossibleHistory):
        PRICE.apply(ModelPrice(), ADDED, 1, 0)
