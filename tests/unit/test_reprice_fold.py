"""A what-if computes each settlement again, and doubts every recorded amount."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.reprice.fold import Repricing
from projections.reprice.prices import CURRENT, WhatIf, parse_what_if, scaled
from projections.reprice.report import ANOMALIES_MAX, RepriceReport
from schemas.errors import BadRequest
from schemas.ledger import ReleaseReason
from schemas.prices import (
    PPM,
    Free,
    PerCall,
    PerToken,
    PerUnit,
    Price,
    PriceRef,
    Rates,
    Terms,
    Tier,
    Units,
    Window,
    cost_of,
)
from schemas.usage import Usage
from tests.settled_log import A_PLAN, AT_US, SECOND_US, SettledLog

PER_TOKEN: Final = PerToken(100_000, 200_000)
"""100 and 200 micro-points a token."""
VERSIONS: Final[dict[PriceRef, Price]] = {
    PriceRef("model", 1): PER_TOKEN,
    PriceRef("model", 2): PerToken(50_000, 60_000),
    PriceRef("called", 1): PerCall(2_000_000_000),
    PriceRef("free", 1): Free(),
    PriceRef("tiered", 1): PerToken(
        1_001, 2_003, 7, tiers=(Tier(1_000, Rates(3_001, 4_003)),),
        windows=(Window(0, 720, 480, 300_001),),
    ),
}  # fmt: skip
DOUBLED: Final = WhatIf({"model": scaled(PER_TOKEN, Decimal(2))})


def folded(
    log: SettledLog, what_if: WhatIf = CURRENT, since_us: int = 0, until_us: int = 2**62
) -> RepriceReport:
    fold = Repricing(VERSIONS, what_if, since_us, until_us)
    for begin in range(0, len(log.rows), 3):
        fold.feed(log.rows[begin : begin + 3])
    return fold.finish()


USAGES = st.builds(
    Usage,
    input=st.integers(0, 5_000),
    cached_input=st.integers(0, 5_000),
    cache_write=st.integers(0, 500),
    output=st.integers(0, 5_000),
)
TERMS = st.builds(
    Terms,
    at_us=st.integers(AT_US, AT_US + 86_400 * SECOND_US),
    group=st.just("g"),
    multiplier_ppm=st.sampled_from([PPM, PPM // 3, 2 * PPM]),
)
REQUESTS = st.tuples(
    st.integers(1, 3),
    st.sampled_from([("model", 1), ("model", 2), ("called", 1), ("free", 1), ("tiered", 1)]),
    USAGES,
    TERMS,
    st.sampled_from(["settled", "short", "plan", "swept", "swept and late", "released and late"]),
    USAGES,
)


def write(log: SettledLog, request: Any) -> None:
    """One request as the ledger would have recorded it."""
    account, (model, version), usage, terms, kind, more = request
    price = VERSIONS[PriceRef(model, version)]
    due_upt = cost_of(price, usage, terms)
    request_id = log.hold(account, model)
    settle: dict[str, Any] = {"model": model, "terms": terms, "price_version": version}
    late = {"model": model, "terms": terms}
    match kind:
        case "short":
            short_upt = due_upt // 3
            log.settle(
                account, request_id, usage, due_upt - short_upt, shortfall_upt=short_upt, **settle
            )
        case "plan":
            log.settle(account, request_id, usage, 0, plan=A_PLAN, **settle)
        case "swept" | "swept and late":
            row = log.settle(account, request_id, usage, due_upt, swept=True, **settle)
            if kind == "swept and late":
                late_upt = max(0, cost_of(VERSIONS[PriceRef(model, 1)], more, terms) - due_upt)
                log.late(account, request_id, row.event_id, more, late_upt // 2,
                         late_upt - late_upt // 2, **late)  # fmt: skip
        case "released and late":
            row = log.release(account, request_id, ReleaseReason.SWEPT)
            cost_upt = cost_of(VERSIONS[PriceRef(model, 1)], more, terms)
            log.late(account, request_id, row.event_id, more, cost_upt, **late)
        case _:
            log.settle(account, request_id, usage, due_upt, **settle)


@given(st.lists(REQUESTS, max_size=12))
def test_the_same_prices_differ_by_nothing(requests: list[Any]) -> None:
    log = SettledLog()
    for request in requests:
        write(log, request)
    report = folded(log)
    assert report.total.difference_upt == 0
    assert (report.anomalies, report.anomalies_count) == ((), 0)
    assert all(sums.difference_upt == 0 for sums in report.rows.values())


@given(st.lists(REQUESTS, min_size=1, max_size=8), st.data())
def test_one_planted_wrong_settlement_is_found(requests: list[Any], data: st.DataObject) -> None:
    log = SettledLog()
    for request in requests:
        write(log, request)
    settles = [i for i, row in enumerate(log.rows) if row.type in ("HoldSettled", "UsageLate")]
    index = data.draw(st.sampled_from(settles))
    row = log.rows[index]
    payload = msgspec.json.decode(row.payload)
    payload["amount_upt"] += data.draw(st.integers(1, 1_000))
    log.rows[index] = msgspec.structs.replace(row, payload=msgspec.json.encode(payload))
    report = folded(log)
    found = [(one.stream, one.version) for one in report.anomalies]
    assert (row.stream, row.version) in found
    assert report.anomalies[found.index((row.stream, row.version))].event_id == row.event_id


@given(st.lists(st.tuples(st.integers(1, 3), USAGES), max_size=20))
def test_a_doubled_price_is_the_independent_sum(requests: list[tuple[int, Usage]]) -> None:
    log = SettledLog()
    expected: dict[str, int] = {}
    for account, usage in requests:
        due_upt = cost_of(PER_TOKEN, usage)
        log.settle(account, log.hold(account), usage, due_upt)
        tokens = usage.input + usage.cached_input + usage.cache_write
        stream = f"account:{account}"
        expected[stream] = expected.get(stream, 0) + tokens * 200 + usage.output * 400
    report = folded(log, DOUBLED)
    assert {name: sums.what_if_upt for name, sums in report.accounts.items()} == expected
    assert report.total.difference_upt == report.total.due_upt
    assert report.anomalies == ()


def test_a_settlement_at_a_version_that_never_was_stands_and_is_named() -> None:
    log = SettledLog()
    log.settle(1, log.hold(1), Usage(input=1), 7, model="lost")
    report = folded(log)
    assert (report.total.due_upt, report.total.what_if_upt) == (7, 7)
    assert [one.recomputed_upt for one in report.anomalies] == [None]


def test_a_settlement_of_a_plan_that_charged_is_named() -> None:
    log = SettledLog()
    log.settle(1, log.hold(1), Usage(input=10), 1_000, plan=A_PLAN)
    report = folded(log)
    (anomaly,) = report.anomalies
    assert (anomaly.recorded_upt, anomaly.recomputed_upt) == (1_000, 0)


def test_what_a_plan_paid_stands_apart_with_its_list_value() -> None:
    log = SettledLog()
    log.settle(1, log.hold(1), Usage(input=10), 0, plan=A_PLAN)
    total = folded(log, msgspec.structs.replace(DOUBLED, costs={"model": PER_TOKEN})).total
    assert (total.due_upt, total.what_if_upt, total.difference_upt) == (0, 0, 0)
    assert (total.plan_calls, total.plan_list_upt, total.plan_list_what_if_upt) == (1, 1_000, 2_000)
    assert (total.cost_upt, total.plan_cost_upt) == (0, 1_000)


def test_late_usage_owes_what_the_sweep_did_not_take() -> None:
    log = SettledLog()
    request = log.hold(1)
    sweep = log.settle(1, request, Usage(input=10), 1_000, swept=True)
    log.late(1, request, sweep.event_id, Usage(input=25), 1_500)
    report = folded(log, DOUBLED)
    assert (report.total.due_upt, report.total.what_if_upt) == (2_500, 5_000)
    assert report.anomalies == ()


def test_late_usage_remembers_a_sweep_before_the_time_that_is_asked_about() -> None:
    log = SettledLog()
    request = log.hold(1)
    sweep = log.settle(1, request, Usage(input=10), 1_000, swept=True, at_us=AT_US)
    log.late(1, request, sweep.event_id, Usage(input=25), 1_500, at_us=AT_US + SECOND_US)
    report = folded(log, DOUBLED, since_us=AT_US + SECOND_US)
    assert (report.total.due_upt, report.total.what_if_upt) == (1_500, 3_000)


def test_a_time_begins_with_its_first_moment_and_ends_before_its_last() -> None:
    log = SettledLog()
    for seconds in range(4):
        log.settle(1, log.hold(1), Usage(input=1), 100, at_us=AT_US + seconds * SECOND_US)
    report = folded(log, since_us=AT_US + SECOND_US, until_us=AT_US + 3 * SECOND_US)
    assert report.total.settlements == 2


def test_margin_is_what_is_due_less_what_the_provider_takes() -> None:
    log = SettledLog()
    tripled = Terms(AT_US, "g", 1, 3 * PPM)
    log.settle(1, log.hold(1), Usage(input=10), 3_000, terms=tripled)
    log.settle(1, log.hold(1, "called"), Usage(), 2_000_000, model="called")
    report = folded(log, WhatIf(DOUBLED.prices, {"model": PerToken(40_000, 1)}))
    sums = report.models["model"]
    assert (sums.cost_upt, sums.margin_upt, sums.margin_what_if_upt) == (400, 2_600, 5_600)
    assert report.models["called"].margin_upt == 0, "no cost price, so no margin"
    assert report.total.margin_upt == 2_600


def test_the_most_affected_come_first_and_the_unmoved_not_at_all() -> None:
    log = SettledLog()
    for account, tokens in ((1, 1), (2, 3), (3, 2)):
        usage = Usage(input=tokens)
        log.settle(account, log.hold(account), usage, tokens * 100)
    log.settle(4, log.hold(4, "called"), Usage(), 2_000_000, model="called")
    report = folded(log, DOUBLED)
    names = [stream for stream, _ in report.most_affected(2)]
    assert names == ["account:2", "account:3"]
    assert len(report.most_affected(10)) == 3


def test_more_anomalies_than_are_named_are_all_counted() -> None:
    log = SettledLog()
    for _ in range(ANOMALIES_MAX + 5):
        log.settle(1, log.hold(1), Usage(input=1), 99)
    report = folded(log)
    assert (len(report.anomalies), report.anomalies_count) == (ANOMALIES_MAX, ANOMALIES_MAX + 5)


NOW: Final[dict[str, Price]] = {"model": PER_TOKEN, "called": PerCall(3), "free": Free()}


def test_a_price_file_names_prices_factors_and_costs() -> None:
    text = b"""
    [models]
    model = {scale = "1.5"}
    called = {type = "token", input_npt = 1, output_npt = 2}
    [costs.model]
    type = "call"
    call_npt = 9
    """
    what_if = parse_what_if(text, toml=True, current=NOW)
    assert what_if.prices == {"model": PerToken(150_000, 300_000), "called": PerToken(1, 2)}
    assert what_if.costs == {"model": PerCall(9)}
    as_json = b'{"models": {"free": {"type": "call", "call_npt": 1}}}'
    assert parse_what_if(as_json, toml=False, current=NOW).prices == {"free": PerCall(1)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"models": {"gpt": {"scale": "2"}}}', "no model 'gpt'"),
        (b'{"costs": {"gpt": {"type": "free"}}}', "no model 'gpt'"),
        (b'{"models": {"model": {"scale": "-2"}}}', "no factor"),
        (b'{"models": {"model": {"scale": "1e3"}}}', "no factor"),
        (b'{"models": {"model": {"type": "call"}}}', "call_npt"),
        (b'{"models": {"model": {"type": "call", "call_npt": -1}}}', "not negative"),
        (b'{"model": {}}', "cannot be read"),
        (b"{", "cannot be read"),
        (b"{}", "names no model"),
    ],
)
def test_a_price_file_that_says_nothing_usable_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_what_if(text, toml=False, current=NOW)


def test_a_factor_reaches_every_amount_and_rounds_up() -> None:
    price = PerToken(3, 5, None, 7, tiers=(Tier(10, Rates(1, 1, 1)),), units=Units(search_npt=9))
    assert scaled(price, Decimal("1.1")) == PerToken(
        4, 6, None, 8, tiers=(Tier(10, Rates(2, 2, 2)),), units=Units(search_npt=10)
    )
    assert scaled(PerCall(10), Decimal("0.5")) == PerCall(5)
    assert scaled(PerUnit(Units(image_npt=3)), Decimal(3)) == PerUnit(Units(image_npt=9))
    assert scaled(price, Decimal(0)) == Free()
    assert scaled(Free(), Decimal(2)) == Free()
