"""Which price counts when: versions with a time of their own, folded and looked up."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.catalog.channel import Channel
from backend.catalog.decide import (
    ListedPrices,
    NothingToChange,
    PriceChangedSince,
    PriceInThePast,
    TooManyScheduled,
    decide_accept_list,
    decide_set_price,
)
from backend.catalog.group import DefinedGroup
from backend.catalog.plan import DefinedPlan
from backend.catalog.price import (
    PRICE,
    SCHEDULED_MAX,
    ModelPrice,
    ScheduledPrice,
    price_at,
    timetable,
)
from backend.catalog.view import CatalogView
from backend.journal.commands import Accept, Refuse, Standing
from backend.kit.secrets import SiteSecret
from schemas.catalog import ChannelSettings, PriceListAccepted, PriceSet
from schemas.money import MicroPoints
from schemas.plans import Group, OfferedGroup, OfferedPlan, Plan, PlanRef
from schemas.prices import PPM, Free, PerCall, PriceRef

NOW = 1_000
LISTED = PriceListAccepted(b"digest", "USD", "71.2", (), "cli")


def folded(*facts: tuple[int, PriceSet]) -> ModelPrice:
    """The state after (at, event) pairs."""
    state = ModelPrice()
    for version, (at_us, fact) in enumerate(facts, 1):
        state = PRICE.apply(state, fact, version, at_us)
    return state


def call(amount: int, effective_us: int = 0) -> PriceSet:
    return PriceSet(PerCall(amount), effective_us)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60), st.integers(1, 4)), max_size=12),
    st.integers(0, 100),
)
def test_of_all_versions_that_have_begun_the_newest_counts(
    steps: list[tuple[int, int, int]], later: int
) -> None:
    """Against the rule itself, over every version that ever was."""
    at_us, facts = 0, list[tuple[int, PriceSet]]()
    for pause, effective_us, amount in steps:
        at_us += pause
        facts.append((at_us, call(amount, effective_us)))
    state, asked_us = folded(*facts), at_us + later
    begun = [
        version
        for version, (recorded_us, fact) in enumerate(facts, 1)
        if max(recorded_us, fact.effective_us) <= asked_us
    ]
    found = price_at(state, len(facts), asked_us)
    assert (found.version if found else None) == (begun[-1] if begun else None)
    if found is not None:
        assert found.price == facts[found.version - 1][1].price
    assert PRICE.decode(PRICE.encode(state)) == state


@given(st.lists(st.integers(0, 60), max_size=30))
def test_what_can_never_count_again_is_not_kept(times: list[int]) -> None:
    state = folded(*((index, call(1 + index, time)) for index, time in enumerate(times)))
    schedule, now_us = state.schedule(len(times)), len(times) - 1
    assert sum(one.from_us <= now_us for one in schedule) <= 1
    assert [one.from_us for one in schedule] == sorted({one.from_us for one in schedule})


def test_a_state_of_earlier_code_is_read_and_written_as_it_was() -> None:
    stored = b'{"price":{"type":"call","call_npt":5}}'
    state = PRICE.decode(stored)
    assert price_at(state, 3, 0) == ScheduledPrice(3, PerCall(5))
    assert PRICE.encode(state) == stored
    assert PRICE.encode(folded((1, call(4)), (2, call(5)))) == stored
    after = PRICE.apply(state, call(9, 50), 4, 10)
    assert [one.version for one in after.schedule(4)] == [3, 4]


def test_a_future_price_begins_at_its_microsecond_and_not_before() -> None:
    state = folded((1, call(5)), (2, call(9, 50)))
    assert price_at(state, 2, 49) == ScheduledPrice(1, PerCall(5))
    assert price_at(state, 2, 50) == ScheduledPrice(2, PerCall(9), 50)
    assert price_at(folded((2, call(9, 50))), 1, 49) is None


def test_a_price_at_once_ends_those_that_wait() -> None:
    state = folded((1, call(5)), (2, call(9, 50)), (3, call(7)))
    assert state == ModelPrice(PerCall(7))


def test_a_price_is_a_new_version_only_where_it_changes_something() -> None:
    standing = Standing("price:m", 2, ModelPrice(PerCall(5)))
    assert decide_set_price(standing, PriceSet(Free()), NOW) == Accept(((0, PriceSet(Free())),))
    assert decide_set_price(standing, call(5), NOW) == Refuse(NothingToChange(2))
    assert decide_set_price(standing, call(5, 2_000), NOW) == Refuse(NothingToChange(2))
    assert decide_set_price(standing, call(6, 2_000), NOW) == Accept(((0, call(6, 2_000)),))
    new = Standing("price:m", 0, ModelPrice())
    assert decide_set_price(new, call(5), NOW) == Accept(((0, call(5)),))
    waiting = Standing("price:m", 3, folded((1, call(5)), (2, call(6, 2_000))))
    assert decide_set_price(waiting, call(6, 2_000), NOW) == Refuse(NothingToChange(3))
    # Setting what counts now again ends what would have come.
    assert decide_set_price(waiting, call(5), NOW) == Accept(((0, call(5)),))


def test_a_price_does_not_begin_in_the_past() -> None:
    standing = Standing("price:m", 0, ModelPrice())
    for effective_us in (1, NOW):
        assert decide_set_price(standing, call(5, effective_us), NOW) == Refuse(PriceInThePast())


def test_the_prices_that_wait_are_bounded() -> None:
    state = folded(*((0, call(n, 10_000 + n)) for n in range(1, SCHEDULED_MAX + 1)))
    standing = Standing("price:m", SCHEDULED_MAX, state)
    assert len(state.schedule(SCHEDULED_MAX)) == SCHEDULED_MAX
    assert decide_set_price(standing, call(1, 99_999), NOW) == Refuse(TooManyScheduled())
    assert isinstance(decide_set_price(standing, call(1), NOW), Accept)


def test_a_list_lands_on_what_was_reviewed_and_on_nothing_else() -> None:
    listed = (ListedPrices("a", 1, (call(7),)), ListedPrices("b", 0, (call(8), call(9, 5_000))))
    lists = Standing("pricelist:x", 0, None)
    a, b = Standing("price:a", 1, ModelPrice(PerCall(5))), Standing("price:b", 0, ModelPrice())
    decision = decide_accept_list((lists, a, b), listed, LISTED, NOW)
    assert isinstance(decision, Accept)
    (home, fact), *prices = decision.events
    assert (home, fact.models) == (0, ("a", "b"))
    assert prices == [(1, call(7)), (2, call(8)), (2, call(9, 5_000))]
    moved = Standing("price:a", 2, ModelPrice(PerCall(6)))
    assert decide_accept_list((lists, moved, b), listed, LISTED, NOW) == Refuse(
        PriceChangedSince("a")
    )


def test_a_list_that_landed_by_half_can_be_accepted_again() -> None:
    listed = (ListedPrices("a", 1, (call(7),)), ListedPrices("b", 0, (call(8),)))
    lists = Standing("pricelist:x", 4, None)
    done, b = Standing("price:a", 2, ModelPrice(PerCall(7))), Standing("price:b", 0, ModelPrice())
    decision = decide_accept_list((lists, done, b), listed, LISTED, NOW)
    assert isinstance(decision, Accept)
    assert (decision.events[0][1].models, decision.events[1:]) == (("b",), ((2, call(8)),))
    both = (lists, done, Standing("price:b", 1, ModelPrice(PerCall(8))))
    assert decide_accept_list(both, listed, LISTED, NOW) == Refuse(NothingToChange(4))


def test_a_date_of_a_list_that_has_come_since_counts_at_once() -> None:
    lists, new = Standing("pricelist:x", 0, None), Standing("price:a", 0, ModelPrice())
    listed = (ListedPrices("a", 0, (call(7, NOW - 1),)),)
    decision = decide_accept_list((lists, new), listed, LISTED, NOW)
    assert isinstance(decision, Accept)
    assert decision.events[1] == (1, call(7))


class HandClock:
    def __init__(self) -> None:
        self.at_us = 0

    def now_us(self) -> int:
        return self.at_us

    def monotonic_s(self) -> float:
        return self.at_us / 1e6


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def view(clock: HandClock) -> CatalogView:
    return CatalogView(SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+"), clock)


def test_a_model_whose_price_is_still_to_come_is_not_there_yet(
    view: CatalogView, clock: HandClock
) -> None:
    settings = ChannelSettings("one", "openai", "http://h", ("m", "n"))
    view.put("channel:1", 1, Channel(settings, enabled=True))
    view.put("price:m", 1, folded((1, call(9, 50))))
    clock.at_us = 49
    assert view.price_of("m", 49) is None
    assert (view.available("m"), view.models()) == (False, ())
    clock.at_us = 50
    priced = view.price_of("m", 50)
    assert priced is not None
    assert (priced.price, priced.ref) == (PerCall(9), PriceRef("m", 1))
    assert (view.available("m"), view.available("n"), view.models()) == (True, False, ("m",))
    view.drop("price:m")
    assert view.price_of("m", 50) is None


def test_a_price_in_force_stays_the_same_object_until_another_begins(view: CatalogView) -> None:
    """What was made from it is kept by identity."""
    view.put("price:m", 1, folded((1, call(5))))
    first = view.price_of("m", 10)
    view.put("price:m", 2, folded((1, call(5)), (2, call(9, 50))))
    assert view.price_of("m", 49) is first
    later = view.price_of("m", 50)
    assert later is not first
    assert view.price_of("m", 10**15) is later


def test_groups_and_plans_are_replaced_and_never_changed(view: CatalogView) -> None:
    plan = Plan("Basic", MicroPoints(100), ())
    before = view.groups
    view.put("group:vip", 3, DefinedGroup(Group(PPM // 2)))
    view.put("plan:1", 2, DefinedPlan(plan))
    assert (before, view.groups) == ({}, {"vip": OfferedGroup(Group(PPM // 2), 3)})
    assert view.plans == {1: OfferedPlan(plan, PlanRef(1, 2))}
    assert isinstance(view.groups, MappingProxyType)
    assert isinstance(view.plans, MappingProxyType)
    view.drop("group:vip")
    view.drop("plan:1")
    assert (view.groups, view.plans) == ({}, {})


def test_equal_timetables_cost_the_same(view: CatalogView) -> None:
    twice = folded((1, call(5)), (2, call(5, 50)), (3, call(6, 60)))
    once = folded((1, call(5)), (2, call(6, 60)))
    assert timetable(twice, 10) == timetable(once, 10) == ((0, PerCall(5)), (60, PerCall(6)))
    assert timetable(twice, 60) == ((0, PerCall(6)),)
