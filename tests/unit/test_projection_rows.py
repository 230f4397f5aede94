"""What events become in the rows of projections, without a database."""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections import defaultdict
from typing import get_args

import pytest

from backend.journal.consumer import Arrived, PoisonEvent
from backend.ledger.account import (
    ACCOUNT,
    HOUR_US,
    AccountEvent,
    ImpossibleHistory,
    RequestEvent,
)
from projections.balance.projection import HANDLERS as BALANCE_HANDLERS
from projections.codes.projection import HANDLERS as CODE_HANDLERS
from projections.declared import PROJECTIONS, find_projection
from projections.requests.projection import HANDLERS as REQUEST_HANDLERS
from projections.requests.rows import RequestRow, RequestRows
from projections.statement.projection import HANDLERS as STATEMENT_HANDLERS
from projections.statement.projection import StatementStates, lines_of
from projections.usage.projection import HANDLERS as USAGE_HANDLERS
from projections.usage.rows import Totals, UsageRows
from schemas.errors import NotFound
from schemas.event import Recorded
from schemas.ledger import (
    GrantKind,
    HoldExtended,
    LedgerEvent,
    PointsGranted,
    RefusalReason,
    ReleaseReason,
    ShortfallRecorded,
)
from schemas.registry import decode
from tests.projection_log import PLANS, TERMS, History

SEEDS = range(5)


def arrived(rows: list[Recorded]) -> list[Arrived]:
    return [Arrived(row, decode(row)) for row in rows]


def lines(history: History):
    return lines_of(StatementStates(), arrived(history.rows))


def request_rows(history: History) -> dict[str, RequestRow]:
    rows = RequestRows({})
    for given in arrived(history.rows):
        handler = REQUEST_HANDLERS.get(type(given.event))
        if handler is not None:
            handler(rows, given.row, given.event)
    return {row.request_id: row for row in rows.changed()}


def usage_rows(history: History) -> UsageRows:
    rows = UsageRows({})
    for given in arrived(history.rows):
        handler = USAGE_HANDLERS.get(type(given.event))
        if handler is not None:
            handler(rows, given.row, given.event)
    return rows


def totals(history: History) -> dict[tuple[int, int], Totals]:
    return {(row.hour, row.channel): row for row in usage_rows(history).totals()}


def test_every_event_of_the_ledger_is_an_accounts_or_a_codes_and_is_handled() -> None:
    ours, codes = set(BALANCE_HANDLERS), set(CODE_HANDLERS)
    assert not ours & codes
    assert ours | codes == set(get_args(LedgerEvent))
    assert ours == set(get_args(AccountEvent)) | set(get_args(RequestEvent))


def test_handlers_name_events_of_the_ledger_only() -> None:
    for handlers in (STATEMENT_HANDLERS, REQUEST_HANDLERS, USAGE_HANDLERS):
        assert set(handlers) <= set(get_args(LedgerEvent))


def test_an_unknown_projection_is_refused_with_the_names_there_are() -> None:
    assert find_projection("usage").name == "usage"
    with pytest.raises(NotFound, match="balance, statement, requests, usage, codes"):
        find_projection("users")


def test_every_projection_reads_the_ledger_and_has_tables() -> None:
    for projection in PROJECTIONS:
        assert projection.topics == ("suanpan.ledger",)
        for table in projection.tables:
            assert f"CREATE TABLE IF NOT EXISTS {table} (" in projection.script()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_running_balance_equals_the_fold_at_every_line(seed: int) -> None:
    history = History(seed)
    history.everything(accounts=4, steps=400)
    posted: dict[tuple[str, int], int] = {}
    states = {}
    for given in arrived(history.rows):
        stream, version = given.row.stream, given.row.version
        before = states.get(stream, ACCOUNT.empty)
        states[stream] = ACCOUNT.apply(before, given.event, version, given.row.at_us)
        if states[stream].posted_upt != before.posted_upt:
            posted[(stream, version)] = states[stream].posted_upt
    found = lines(history)
    assert {(line.stream, line.version): line.balance_upt for line in found} == posted
    running: dict[str, int] = defaultdict(int)
    for line in found:
        running[line.stream] += line.amount_upt
        assert running[line.stream] == line.balance_upt


def test_a_settle_of_nothing_is_no_line_of_the_statement() -> None:
    history = History()
    stream = history.open(1)
    history.settle(stream, history.hold(stream), 0)
    assert [line.kind for line in lines(history)] == ["grant"]


def test_a_charge_names_its_request_model_price_and_basis() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream, model="asked-for")
    row = history.settle(stream, request_id, 700, model="priced-as")
    line = lines(history)[-1]
    assert (line.kind, line.amount_upt, line.request_id) == ("settle", -700, request_id)
    assert (line.model, line.price_model, line.price_version) == ("asked-for", "priced-as", 3)
    assert (line.basis, line.event_id, line.version) == ("reported", row.event_id, row.version)


def test_points_from_codes_gifts_and_invitations_say_where_they_come_from() -> None:
    history = History()
    stream = history.open(1)
    history.add(stream, PointsGranted(5, GrantKind.REDEMPTION, "person:1", "code:ab"))
    history.gift(stream, 900)
    history.reward(stream, 42, 300)
    redeemed, gift, reward = lines(history)[1:]
    assert (redeemed.kind, redeemed.grant_kind, redeemed.source) == (
        "grant", "redemption", "code:ab",
    )  # fmt: skip
    assert (gift.kind, gift.amount_upt, gift.gift_type) == ("gift", 900, "type 1")
    assert gift.source is not None
    assert gift.source.startswith("code:")
    assert (reward.kind, reward.amount_upt, reward.source) == ("invitation", 300, "person:42")


def test_a_plan_is_bought_renewed_and_changed_in_one_line_each() -> None:
    history = History()
    stream = history.open(1)
    for level, months in ((1, 1), (1, 3), (2, 1)):
        history.subscribe(stream, level, months)
    bought, renewed, changed = lines(history)[1:]
    assert (bought.kind, bought.amount_upt, bought.plan_level) == ("plan_buy", -50_000, 1)
    assert (renewed.kind, renewed.amount_upt, renewed.plan_months) == ("plan_renew", -150_000, 3)
    assert (changed.kind, changed.plan_level, changed.plan_version) == ("plan_change", 2, 4)
    assert changed.credit_upt is not None
    assert changed.amount_upt == changed.credit_upt - 100_000 > 0
    assert changed.balance_upt == history.states[stream].posted_upt


def test_a_request_that_a_plan_pays_for_names_it_and_costs_nothing() -> None:
    history = History()
    stream = history.open(1)
    history.subscribe(stream, 1)
    request_id = history.plan_hold(stream)
    assert request_id is not None
    history.settle(stream, request_id)
    row = request_rows(history)[request_id]
    assert (row.plan_level, row.plan_version, row.plan_item) == (1, PLANS[1].ref.version, "i")
    assert (row.group_name, row.multiplier_ppm) == (TERMS.group, TERMS.multiplier_ppm)
    assert (row.charged_upt, row.held_upt, row.outcome) == (0, 0, "settled")
    (total,) = usage_rows(history).totals()
    assert (total.requests, total.plan_requests, total.charged_upt) == (1, 1, 0)
    assert (total.input_tokens, total.cache_write_tokens) == (125, 5)
    assert [line.kind for line in lines(history)] == ["grant", "plan_buy"]


@pytest.mark.parametrize("charged_upt", [0, 2_000])
def test_late_usage_names_the_key_and_model_of_the_request_that_was_swept(
    charged_upt: int,
) -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream, model="asked-for", key=77)
    sweep = history.settle(stream, request_id, charged_upt, model="priced-as", swept=True)
    history.late(stream, request_id, sweep, 500)
    line = lines(history)[-1]
    assert (line.kind, line.amount_upt) == ("late", -500)
    assert (line.key, line.model, line.channel) == (77, "asked-for", 8)


def test_a_request_refused_by_its_keys_quota_says_so() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.refuse(stream, reason=RefusalReason.KEY_QUOTA)
    row = request_rows(history)[request_id]
    assert (row.outcome, row.status, row.error) == ("refused", 402, "key_quota_spent")
    assert row.reason == "key_quota"


def test_a_second_outcome_is_impossible_for_every_projection() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    history.settle(stream, request_id)
    history.settle(stream, request_id)
    with pytest.raises(ImpossibleHistory, match="I3"):
        lines(history)
    with pytest.raises(PoisonEvent, match="I3"):
        request_rows(history)
    with pytest.raises(PoisonEvent, match="I3"):
        usage_rows(history)


def test_an_extension_of_an_ended_request_is_impossible() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    history.release(stream, request_id, ReleaseReason.CLIENT_LEFT)
    history.add(stream, HoldExtended(request_id, 5))
    with pytest.raises(PoisonEvent, match="released and cannot become HoldExtended"):
        request_rows(history)


def test_late_usage_of_a_request_that_was_not_swept_is_impossible() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    history.late(stream, request_id, history.settle(stream, request_id))
    with pytest.raises(PoisonEvent, match="not swept"):
        request_rows(history)
    with pytest.raises(PoisonEvent):
        usage_rows(history)


def test_a_request_that_begins_twice_is_impossible() -> None:
    history = History()
    stream = history.open(1)
    history.hold(stream)
    again = decode(history.rows[-1])
    history.add(stream, again)
    with pytest.raises(PoisonEvent, match="begun already"):
        request_rows(history)
    with pytest.raises(PoisonEvent, match="begun already"):
        usage_rows(history)


def test_an_extended_short_request_keeps_what_was_held_charged_and_lost() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream, 5_000)
    history.add(stream, HoldExtended(request_id, 700))
    history.settle(stream, request_id, 5_700)
    history.add(stream, ShortfallRecorded(request_id, 11))
    row = request_rows(history)[request_id]
    assert (row.held_upt, row.charged_upt, row.shortfall_upt) == (5_700, 5_700, 11)
    assert (row.outcome, row.status, row.channel) == ("settled", 200, 7)
    assert (row.input_tokens, row.cached_tokens, row.cache_write_tokens) == (120, 30, 5)
    assert (row.output_tokens, row.reasoning_tokens, row.basis) == (80, 20, "reported")
    assert (row.duration_ms, row.first_token_ms) == (950, 120)


def test_a_refused_request_says_what_was_missing() -> None:
    history = History()
    stream = history.open(1)
    row = request_rows_of_refusal(history, stream)
    assert (row.outcome, row.status, row.error) == ("refused", 402, "insufficient_quota")
    assert (row.missing_upt, row.held_upt, row.ended_us) == (70, 0, row.started_us)


def request_rows_of_refusal(history: History, stream: str) -> RequestRow:
    request_id = history.refuse(stream)
    return request_rows(history)[request_id]


def test_late_usage_takes_the_place_of_what_the_sweep_knew() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    history.late(stream, request_id, history.settle(stream, request_id, 2_000, swept=True), 500)
    row = request_rows(history)[request_id]
    assert (row.outcome, row.swept, row.charged_upt, row.shortfall_upt) == ("late", True, 2_500, 9)
    assert (row.input_tokens, row.output_tokens, row.channel) == (200, 150, 8)


def test_late_usage_moves_counts_but_is_charged_in_its_own_hour() -> None:
    history = History()
    stream = history.open(1)
    request_id = history.hold(stream)
    sweep = history.settle(stream, request_id, 2_000, swept=True)
    history.now_us += 3 * HOUR_US
    late = history.late(stream, request_id, sweep, 500)
    found = totals(history)
    before = found[(sweep.at_us // HOUR_US, 7)]
    counted = found[(sweep.at_us // HOUR_US, 8)]
    charged = found[(late.at_us // HOUR_US, 8)]
    assert (before.requests, before.charged_upt, before.output_tokens) == (0, 0, 0)
    assert (counted.requests, counted.charged_upt, counted.output_tokens) == (1, 2_000, 150)
    assert (charged.requests, charged.charged_upt, charged.output_tokens) == (0, 500, 0)


def test_failures_are_errors_and_a_client_that_left_is_none() -> None:
    history = History()
    stream = history.open(1)
    history.release(stream, history.hold(stream), ReleaseReason.UPSTREAM_TIMEOUT)
    history.release(stream, history.hold(stream), ReleaseReason.CLIENT_LEFT)
    history.refuse(stream)
    history.hold(stream)
    (row,) = usage_rows(history).totals()
    assert (row.requests, row.errors, row.refused) == (3, 1, 1)
    assert len(usage_rows(history).now_waiting()) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_every_hour_charges_what_the_statement_charges(seed: int) -> None:
    history = History(seed)
    history.everything(accounts=4, steps=400)
    by_statement: dict[tuple[str, int], int] = defaultdict(int)
    for line in lines(history):
        if line.kind in ("settle", "late"):
            by_statement[(line.stream, line.at_us // HOUR_US)] -= line.amount_upt
    by_usage: dict[tuple[str, int], int] = defaultdict(int)
    for row in usage_rows(history).totals():
        by_usage[(row.stream, row.hour)] += row.charged_upt
        assert row.requests >= 0
    assert {k: v for k, v in by_usage.items() if v} == by_statement
    ended = [row for row in request_rows(history).values() if row.outcome != "open"]
    assert sum(row.requests for row in usage_rows(history).totals()) == len(ended)
