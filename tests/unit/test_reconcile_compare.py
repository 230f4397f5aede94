"""Each way in which a bill and our own counts differ has its name, and only that one."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.reconcile.bill import Bill, BillLine, Period, Used
from projections.reconcile.compare import Finding, Reason, Reconciliation, reconcile
from projections.reconcile.names import family_of, groups_of
from projections.reconcile.ours import IDS_MAX, OurUsage
from projections.reconcile.run import check_comparable
from projections.reconcile.tariff import NO_TARIFF, Tariff, parse_tariff
from schemas.errors import BadRequest
from schemas.ids import ChannelId
from schemas.ledger import ReleaseReason, Served
from schemas.usage import Basis, Usage
from tests.settled_log import AT_US, SECOND_US, SettledLog

HOUR_US: Final = 3_600 * SECOND_US
FIRST: Final = Period(AT_US - HOUR_US, AT_US)
SECOND: Final = Period(AT_US, AT_US + HOUR_US)
NOON_US: Final = AT_US + HOUR_US // 2
"""In the middle of SECOND, far from its edges."""
MODEL: Final = "gpt-4o"
HERE: Final = ChannelId(1)
REPORTED: Final = Served(channel=HERE, upstream_model=MODEL, status=200, attempts=1)
LEFT: Final = Served(channel=HERE, upstream_model=MODEL, status=0, attempts=1)
USAGE: Final = Usage(input=100, cached_input=20, output=50)
SETTLED: Final = Used(requests=1, uncached=100, cached=20, output=50)
"""What a bill says of one USAGE."""


def one(log: SettledLog, served: Served = REPORTED, at_us: int = NOON_US, **more: Any) -> str:
    request = log.hold(1, MODEL, at_us - 2 * SECOND_US, input_bound=300, output_bound=400)
    log.settle(1, request, more.pop("usage", USAGE), 10, served=served, at_us=at_us, **more)
    return request


def line(used: Used, model: str = MODEL, period: Period = SECOND, rounding: int = 0) -> BillLine:
    return BillLine(period, model, used, rounding)


def cost_line(cost: str, model: str = MODEL, period: Period = SECOND) -> BillLine:
    return BillLine(period, model, cost=Decimal(cost))


def compared(
    log: SettledLog,
    *usage: BillLine,
    costs: tuple[BillLine, ...] = (),
    periods: tuple[Period, ...] = (FIRST, SECOND),
    tariff: Tariff = NO_TARIFF,
) -> Reconciliation:
    fold = OurUsage(periods, frozenset([HERE]))
    fold.feed(log.rows)
    return reconcile(Bill("USD", usage, costs, periods), fold.finish(), tariff)


def finding(log: SettledLog, *usage: BillLine, **more: Any) -> Finding:
    (found,) = compared(log, *usage, **more).findings
    return found


def test_equal_counts_are_equal() -> None:
    log = SettledLog()
    one(log)
    found = finding(log, line(SETTLED))
    assert (found.reasons, found.explained, found.request_ids) == ((Reason.EQUAL,), True, ())
    assert (found.ours.requests, found.ours.uncached, found.charged_upt) == (1, 100, 10)


def test_counts_in_thousands_are_equal_within_their_rounding() -> None:
    log = SettledLog()
    one(log, usage=Usage(input=1_499, output=900))
    counts = Used(uncached=1_000, output=1_000)
    assert finding(log, line(counts, rounding=500)).reasons == (Reason.WITHIN_ROUNDING,)
    assert finding(log, line(counts, rounding=400)).reasons == (Reason.UNEXPLAINED,)


def test_a_request_at_the_edge_may_stand_in_the_period_beside() -> None:
    log = SettledLog()
    one(log)
    edge = one(log, at_us=AT_US + SECOND_US)
    both = compared(log, line(SETTLED, period=FIRST), line(SETTLED))
    assert [found.reasons for found in both.findings] == [(Reason.PERIOD_BOUNDARY,)] * 2
    assert [found.request_ids for found in both.findings] == [(edge,), (edge,)]
    assert both.explained


def test_a_request_far_from_the_edge_does_not_explain_the_period_beside() -> None:
    log = SettledLog()
    one(log)
    both = compared(log, line(SETTLED, period=FIRST))
    assert [found.reasons for found in both.findings] == [(Reason.UNEXPLAINED,)] * 2
    assert not both.explained


def test_a_bill_that_folds_cached_input_into_input_is_compared_so() -> None:
    log = SettledLog()
    one(log)
    found = finding(log, line(Used(uncached=120, output=50)))
    assert found.reasons == (Reason.EQUAL,)
    assert (found.ours.cached, found.ours.requests) == (None, None)


def test_tokens_that_we_counted_may_differ_and_reported_ones_may_not() -> None:
    theirs = Used(requests=1, uncached=110, cached=10, output=60)
    log = SettledLog()
    counted = one(log, basis=Basis.COUNTED)
    found = finding(log, line(theirs))
    assert (found.reasons, found.request_ids) == ((Reason.COUNTED_TOKENS,), (counted,))
    assert found.difference == Used(requests=0, uncached=10, cached=-10, output=10)
    too_many = Used(requests=1, uncached=500, cached=0, output=60)
    assert finding(log, line(too_many)).reasons == (Reason.UNEXPLAINED,)
    reported = SettledLog()
    one(reported)
    assert finding(reported, line(theirs)).reasons == (Reason.UNEXPLAINED,)


def test_a_stream_that_the_client_left_was_billed_to_its_end() -> None:
    log = SettledLog()
    left = one(log, LEFT, basis=Basis.COUNTED)
    found = finding(log, line(Used(requests=1, uncached=100, cached=20, output=400)))
    assert (found.reasons, found.request_ids) == ((Reason.OURS_LACKS_REQUESTS,), (left,))


def test_a_request_that_was_released_may_have_been_billed() -> None:
    log = SettledLog()
    one(log)
    request = log.hold(1, MODEL, NOON_US, input_bound=300, output_bound=400)
    served = Served(channel=HERE, upstream_model=MODEL, attempts=1)
    log.release(1, request, ReleaseReason.UPSTREAM_TIMEOUT, served, NOON_US)
    found = finding(log, line(Used(requests=2, uncached=390, cached=20, output=90)))
    assert (found.reasons, found.request_ids) == ((Reason.OURS_LACKS_REQUESTS,), (request,))


def test_a_request_that_never_reached_the_provider_explains_nothing() -> None:
    log = SettledLog()
    one(log)
    request = log.hold(1, MODEL, NOON_US)
    log.release(1, request, ReleaseReason.NO_CHANNEL, Served(status=503), NOON_US)
    more = Used(requests=2, uncached=200, cached=20, output=90)
    assert finding(log, line(more)).reasons == (Reason.UNEXPLAINED,)


def test_what_a_sweep_settled_may_be_unknown_to_the_provider() -> None:
    log = SettledLog()
    one(log)
    served = Served(channel=HERE, upstream_model=MODEL, error="interrupted")
    swept = one(log, served, basis=Basis.COUNTED, swept=True)
    found = finding(log, line(SETTLED))
    assert (found.reasons, found.request_ids) == ((Reason.PROVIDER_LACKS_REQUESTS,), (swept,))


def test_late_usage_takes_the_place_of_the_sweeps() -> None:
    log = SettledLog()
    request = log.hold(1, MODEL, NOON_US)
    served = Served(error="interrupted")
    sweep = log.settle(1, request, Usage(input=7), 5, swept=True, at_us=NOON_US, served=served)
    log.late(1, request, sweep.event_id, USAGE, 5, at_us=NOON_US + 9 * HOUR_US, served=REPORTED)
    found = finding(log, line(SETTLED))
    assert (found.reasons, found.charged_upt) == ((Reason.EQUAL,), 10)


def test_a_swept_request_of_an_unknown_channel_counts_where_it_may_have_gone() -> None:
    log = SettledLog()
    for channels in ((ChannelId(9), HERE), (ChannelId(9),)):
        request = log.hold(1, MODEL, NOON_US, channels=channels)
        log.release(1, request, ReleaseReason.SWEPT, Served(error="interrupted"), NOON_US)
    used = Used(requests=2, uncached=9, cached=0, output=9)
    assert finding(log, line(used)).reasons == (Reason.UNEXPLAINED,)
    used = Used(requests=1, uncached=9, cached=0, output=9)
    assert finding(log, line(used)).reasons == (Reason.OURS_LACKS_REQUESTS,)


def test_other_channels_are_not_held_against_the_bill() -> None:
    log = SettledLog()
    one(log)
    one(log, Served(channel=ChannelId(2), upstream_model=MODEL, status=200, attempts=1))
    assert finding(log, line(SETTLED)).reasons == (Reason.EQUAL,)


def test_an_attempt_before_the_one_that_answered_may_have_been_billed() -> None:
    log = SettledLog()
    again = one(log, Served(channel=HERE, upstream_model=MODEL, status=200, attempts=2))
    found = finding(log, line(Used(requests=2, uncached=200, cached=40, output=60)))
    assert (found.reasons, found.request_ids) == ((Reason.OURS_LACKS_REQUESTS,), (again,))


def test_a_model_that_no_request_used_is_named_so() -> None:
    log = SettledLog()
    one(log)
    result = compared(log, line(SETTLED), line(SETTLED, model="o9"))
    assert {found.model: found.reasons for found in result.findings} == {
        MODEL: (Reason.EQUAL,),
        "o9": (Reason.UNKNOWN_MODEL,),
    }


def test_a_dated_snapshot_is_the_model_that_was_asked_for() -> None:
    log = SettledLog()
    one(log)
    found = finding(log, line(SETTLED, model="gpt-4o-2024-08-06"))
    assert (found.model, found.reasons) == ("gpt-4o", (Reason.EQUAL,))


def test_causes_are_named_together_where_one_does_not_suffice() -> None:
    log = SettledLog()
    one(log, basis=Basis.COUNTED)
    one(log, at_us=AT_US + SECOND_US)
    found = compared(log, line(Used(requests=1, uncached=90, cached=30, output=49))).findings[-1]
    assert found.reasons == (Reason.PERIOD_BOUNDARY, Reason.COUNTED_TOKENS)


def test_at_most_ten_requests_are_named_the_largest_first() -> None:
    log = SettledLog()
    requests = [one(log, basis=Basis.COUNTED, usage=Usage(input=n, output=n)) for n in range(1, 15)]
    total = sum(range(1, 15))
    found = finding(log, line(Used(requests=14, uncached=total + 9, output=total)))
    assert found.request_ids == tuple(reversed(requests))[:IDS_MAX]


TARIFF: Final = parse_tariff(
    b'{"models": {"gpt-4o": {"input": "2.5", "cached_input": 1.25, "output": 10}}}', toml=False
)
COST: Final = "0.000775"
"""Of SETTLED at TARIFF: (100 × 2.5 + 20 × 1.25 + 50 × 10) / 1,000,000."""


def test_a_cost_is_checked_at_the_prices_given() -> None:
    log = SettledLog()
    one(log)
    found = finding(log, line(SETTLED), costs=(cost_line(COST),), tariff=TARIFF)
    assert (found.reasons, found.expected_cost) == ((Reason.EQUAL,), Decimal(COST))
    found = finding(log, line(SETTLED), costs=(cost_line("0.0009"),), tariff=TARIFF)
    assert found.reasons == (Reason.PRICE_DIFFERENCE,)


def test_a_cost_in_cents_is_right_within_half_a_cent() -> None:
    log = SettledLog()
    one(log, usage=Usage(input=2_001_000, output=0))
    used = Used(requests=1, uncached=2_001_000, output=0)
    cents = BillLine(SECOND, MODEL, cost=Decimal("5.00"), cost_rounding=Decimal("0.005"))
    assert finding(log, line(used), costs=(cents,), tariff=TARIFF).reasons == (Reason.EQUAL,)


def test_costs_by_the_day_are_checked_against_the_hours_within() -> None:
    log = SettledLog()
    one(log)
    both = Period(FIRST.from_us, SECOND.to_us)
    result = compared(log, line(SETTLED), costs=(cost_line(COST, period=both),), tariff=TARIFF)
    assert [found.reasons for found in result.findings] == [(Reason.EQUAL,)] * 2
    unchecked = compared(log, line(SETTLED), costs=(cost_line(COST, period=both),))
    assert unchecked.findings[0].reasons == (Reason.COST_NOT_CHECKED,)


def test_a_bill_of_costs_alone_is_compared_at_the_prices_given() -> None:
    log = SettledLog()
    one(log)
    counted = one(log, basis=Basis.COUNTED)
    only = {"periods": (SECOND,), "tariff": TARIFF}
    assert finding(log, costs=(cost_line("0.00155"),), **only).reasons == (Reason.EQUAL,)
    found = finding(log, costs=(cost_line("0.0016"),), **only)
    assert (found.reasons, found.request_ids) == ((Reason.COUNTED_TOKENS,), (counted,))
    assert finding(log, costs=(cost_line("1"),), **only).reasons == (Reason.UNEXPLAINED,)
    with pytest.raises(BadRequest, match="no usage"):
        check_comparable(Bill("USD", (), (cost_line("1"),), (SECOND,)), NO_TARIFF)


def test_prices_in_another_currency_are_refused() -> None:
    bill = Bill("CNY", (line(SETTLED),), (), (SECOND,))
    dollars = parse_tariff(b'currency = "USD"\n[models]\n', toml=True)
    with pytest.raises(BadRequest, match="in CNY, the costs are in USD"):
        check_comparable(bill, dollars)


@pytest.mark.parametrize(
    "text", [b"{", b'{"models": {"m": {"input": -1, "output": 1}}}',
             b'{"models": {}, "per_tokens": 0}', b'{"models": {"m": {"input": 1}}}'],
)  # fmt: skip
def test_a_costs_file_that_says_nothing_usable_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_tariff(text, toml=False)


def test_families_are_compared_by_name_where_both_sides_use_the_same_names() -> None:
    assert family_of("gpt-4-0613") == "gpt-4"
    assert family_of("claude-sonnet-4-20250514") == "claude-sonnet-4"
    assert family_of("deepseek-chat") == "deepseek-chat"
    same = {"gpt-4o", "gpt-4o-2024-08-06"}
    assert groups_of(same, same) == {name: name for name in same}
    assert set(groups_of({"gpt-4o"}, same).values()) == {"gpt-4o"}
    assert groups_of({"a"}, {"b-2024-08-06"}) == {"a": "a", "b-2024-08-06": "b-2024-08-06"}


REQUEST = st.tuples(
    st.integers(0, 2 * HOUR_US - 1),
    st.builds(Usage, input=st.integers(0, 900), cached_input=st.integers(0, 900),
              output=st.integers(0, 900)),
    st.sampled_from([Basis.REPORTED, Basis.COUNTED]),
    st.integers(-1, 1),
)  # fmt: skip


@given(st.lists(REQUEST, max_size=15))
def test_a_bill_that_counts_each_request_where_it_ended_or_began_is_explained(
    requests: list[tuple[int, Usage, Basis, int]],
) -> None:
    log = SettledLog()
    billed: dict[Period, list[int]] = {FIRST: [0] * 4, SECOND: [0] * 4}
    for offset_us, usage, basis, sign in requests:
        ended_us = FIRST.from_us + offset_us
        one(log, at_us=ended_us, usage=usage, basis=basis)
        # The provider counts it by its begin, and its own tokenizer where we had to count.
        begun_us = max(FIRST.from_us, ended_us - 2 * SECOND_US)
        sums = billed[FIRST if begun_us < FIRST.to_us else SECOND]
        more = sign * (usage.output // 2) if basis is Basis.COUNTED else 0
        counts = (1, usage.input, usage.cached_input, usage.output + more)
        sums[:] = [have + new for have, new in zip(sums, counts, strict=True)]
    lines = [
        line(Used(requests=n, uncached=uncached, cached=cached, output=output), period=period)
        for period, (n, uncached, cached, output) in billed.items()
    ]
    result = compared(log, *lines)
    assert all(
        found.explained or found.reasons == (Reason.UNKNOWN_MODEL,) for found in result.findings
    ), result.findings
