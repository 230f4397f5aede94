"""The ledger's door on a real log: idempotency, what callers are told, and an append-only log."""

from __future__ import annotations

import asyncio
from collections import Counter

import psycopg
import pytest

from backend.kit.postgres import connect
from backend.ledger.points import KEY_ATTEMPTS_MAX
from schemas.errors import IdempotencyConflict, InsufficientPoints, NotFound
from schemas.ids import RequestId
from schemas.ledger import PointsHeld, ReleaseReason, Served
from schemas.prices import Free, PerCall
from schemas.usage import Usage
from tests.conftest import Database
from tests.given import (
    PER_TOKEN,
    POINT,
    charged,
    granting,
    hold_asked,
    new_id,
    new_request,
    settle_asked,
)
from tests.integration.ledger_site import LedgerSite

ROUTE = "/v1/chat/completions"
CHANGES_OF_THE_LOG = [
    statement.format(table)
    for table in ("event_log", "event_log_0")
    for statement in ("UPDATE {} SET payload = ''", "DELETE FROM {}")
] + ["TRUNCATE event_log"]
FORBIDDEN = [
    *CHANGES_OF_THE_LOG,
    "TRUNCATE event_log_0",
    "DELETE FROM event_log_rest",
    "DROP TABLE event_log",
    "ALTER TABLE event_log DISABLE TRIGGER ALL",
    "DELETE FROM commands",
    "UPDATE commands SET version = 1",
    "TRUNCATE commands",
    "DELETE FROM streams",
    "TRUNCATE streams",
]


async def hold(
    ledger: LedgerSite,
    account: str,
    *,
    principal: str = "key:1",
    route: str = ROUTE,
    body: bytes = b"body",
) -> RequestId:
    """A call with an Idempotency-Key, as the front asks for it."""
    request = new_request()
    command_id = await ledger.points.free_command_id(principal, route, "abc")
    await ledger.points.hold(account, hold_asked(request), command_id, body)
    return request


async def test_a_hold_says_how_far_it_and_what_is_left_would_reach(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 5)
    held = await ledger.points.hold(account, hold_asked(new_request()), new_id())
    assert (held.amount_upt, held.reach_upt) == (POINT, 5 * POINT)
    held = await ledger.points.hold(account, hold_asked(new_request(), Free()), new_id())
    assert (held.amount_upt, held.reach_upt) == (0, 4 * POINT)


async def test_a_caller_is_told_how_many_points_are_missing(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 1)
    with pytest.raises(InsufficientPoints, match=r"0\.5 more are needed"):
        await ledger.points.hold(
            account, hold_asked(new_request(), PerCall(1_500_000_000)), new_id()
        )


async def test_an_account_that_does_not_exist_is_held_nothing(ledger: LedgerSite) -> None:
    with pytest.raises(NotFound):
        await ledger.points.hold("account:404", hold_asked(new_request()), new_id())
    assert await ledger.rows() == []


async def test_an_extension_returns_what_it_got(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 2)
    request = new_request()
    await ledger.points.hold(account, hold_asked(request), new_id())
    assert await ledger.points.extend(account, request, 400_000) == 400_000
    assert await ledger.points.extend(account, request, POINT) == 600_000
    assert await ledger.points.extend(account, request, 1) == 0
    assert await ledger.points.extend(account, new_request(), 1) == 0


async def test_a_settle_says_what_was_charged_and_what_could_not_be(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 1)
    request = new_request()
    await ledger.points.hold(account, hold_asked(request, PER_TOKEN, output_limit=10), new_id())
    asked = settle_asked(request, PER_TOKEN, Usage(output=6_000))
    expected = charged(POINT, 200_000)
    assert await ledger.points.settle(account, asked) == expected
    assert await ledger.points.settle(account, asked) == expected, "a second settle is the first"


async def test_settles_and_releases_that_race_leave_one_outcome(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 50)
    requests = [await hold(ledger, account, route=f"{ROUTE}?{n}") for n in range(20)]
    points = ledger.points
    await asyncio.gather(
        *(points.settle(account, settle_asked(request)) for request in requests * 2),
        *(
            points.release(account, request, ReleaseReason.CLIENT_LEFT, Served())
            for request in requests
        ),
    )
    for request in requests:
        assert len(await points.outcome_of(request)) == 1
    assert (await ledger.state(account)).held_upt == 0


async def test_a_key_in_flight_is_a_conflict_that_names_the_request(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 5)
    request = await hold(ledger, account)
    with pytest.raises(IdempotencyConflict, match=f"{request} .*still in flight"):
        await hold(ledger, account)
    assert len((await ledger.state(account)).holds) == 1


async def test_a_key_that_was_answered_is_a_conflict_with_request_and_charge(
    ledger: LedgerSite,
) -> None:
    account = await ledger.open_account(1, 5)
    request = await hold(ledger, account)
    await ledger.points.settle(account, settle_asked(request))
    with pytest.raises(IdempotencyConflict, match=f"{request} .*charged 1 points"):
        await hold(ledger, account)


async def test_a_key_that_was_answered_is_a_conflict_even_when_no_points_are_left(
    ledger: LedgerSite,
) -> None:
    """A repeated call must never look like one that was refused for want of points."""
    account = await ledger.open_account(1, 1)
    request = await hold(ledger, account)
    await ledger.points.settle(account, settle_asked(request))
    for _ in range(70):
        with pytest.raises(InsufficientPoints):
            await ledger.points.hold(account, hold_asked(new_request()), new_id())
    with pytest.raises(IdempotencyConflict, match=request):
        await hold(ledger, account)


async def test_a_key_with_another_body_is_a_conflict(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 5)
    await hold(ledger, account)
    with pytest.raises(IdempotencyConflict, match="another body"):
        await hold(ledger, account, body=b"other")


async def test_a_refusal_and_a_release_free_the_key(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 0)
    with pytest.raises(InsufficientPoints):
        await hold(ledger, account)
    await ledger.writer.submit(granting(1, 2 * POINT))
    request = await hold(ledger, account, body=b"other")
    await ledger.points.release(account, request, ReleaseReason.UPSTREAM_ERROR, Served())
    second = await hold(ledger, account)
    assert second != request
    await ledger.points.settle(account, settle_asked(second))
    with pytest.raises(IdempotencyConflict, match=second):
        await hold(ledger, account)


async def test_many_calls_under_one_key_at_once_let_one_in(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 50)
    answers = await asyncio.gather(
        *(hold(ledger, account) for _ in range(30)), return_exceptions=True
    )
    kinds = Counter(type(answer) for answer in answers)
    assert kinds == {str: 1, IdempotencyConflict: 29}
    events = await ledger.events(account)
    assert sum(isinstance(event, PointsHeld) for event in events) == 1


async def test_keys_of_other_scopes_do_not_meet(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 5)
    await hold(ledger, account)
    await hold(ledger, account, principal="key:2")
    await hold(ledger, account, route="/v1/embeddings")
    assert len((await ledger.state(account)).holds) == 3


async def test_a_key_that_always_fails_is_given_up(ledger: LedgerSite) -> None:
    account = await ledger.open_account(1, 0)
    for _ in range(KEY_ATTEMPTS_MAX):
        with pytest.raises(InsufficientPoints):
            await hold(ledger, account)
    with pytest.raises(IdempotencyConflict, match="failed too often"):
        await hold(ledger, account)


async def test_the_application_cannot_change_what_is_recorded(
    ledger: LedgerSite, database: Database
) -> None:
    """I14, by grants: the log, each of its partitions, the commands and the streams."""
    await ledger.open_account(1, 1)
    before = await ledger.rows()
    async with await connect(database.app_url, application="test") as connection:
        for statement in FORBIDDEN:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement.encode())
    assert await ledger.rows() == before


async def test_not_even_the_owner_changes_what_is_recorded_by_accident(
    ledger: LedgerSite, database: Database
) -> None:
    """I14, by triggers."""
    await ledger.open_account(1, 1)
    async with await connect(database.owner_url, application="test") as connection:
        for statement in CHANGES_OF_THE_LOG:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                await connection.execute(statement.encode())


async def test_every_charge_is_what_its_usage_costs_at_its_price_version(
    ledger: LedgerSite,
) -> None:
    """I13: what was charged and what could not be is the price of the recorded usage."""
    account = await ledger.open_account(1, 3)
    for output in (0, 1, 2_500, 9_000, 30_000):
        request = new_request()
        asked = hold_asked(request, PER_TOKEN, output_limit=100)
        try:
            await ledger.points.hold(account, asked, new_id())
        except InsufficientPoints:
            break
        usage = Usage(input=3, output=output)
        cost = await ledger.points.settle(account, settle_asked(request, PER_TOKEN, usage))
        assert cost.amount_upt + cost.shortfall_upt == 300 + 200 * output
    assert (await ledger.state(account)).available_upt == 0
