"""The checker: everything that must hold once a fault is over, whatever the fault was."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from backend.folds import ALL_FOLDS
from backend.kit.postgres import connect, fetch_all, fetch_one
from projections.audit.run import AuditAsked, run_audit
from projections.declared import live_consumers
from projections.health import list_lags
from projections.replay import replay_kafka, replay_table
from tests.faults.books import Books, read_books, until_ended
from tests.faults.ground import Ground
from tests.faults.load import Call
from tests.faults.site import Account

DRAINED_TIMEOUT_S = 90.0
PUBLISHED = """
SELECT (epoch, xid, seq) = (SELECT epoch, xid, seq FROM event_log
    ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1) FROM publisher
"""
STATES = "SELECT stream, version, state FROM streams WHERE stream LIKE 'account:%%'"
BALANCES = """
SELECT stream, issued_upt, charged_upt, held_upt, available_upt FROM read.balance
"""


class Verdict(msgspec.Struct):
    violations: list[str]
    books: Books
    uncharged: int
    """Completed by the provider, and not charged as it reported: what the fault cost the site."""


async def examine(ground: Ground, accounts: Sequence[Account], calls: Sequence[Call]) -> Verdict:
    """Waits until the site is at rest, then checks it. Raises TimeoutError if it never is."""
    await until_ended(ground.database_url)
    await until_drained(ground)
    books = await read_books(ground.database_url)
    said = believable(ground.upstream.reported())
    wrong = books.examine(accounts, calls, said)
    wrong += wrong_provider_calls(ground, books)
    wrong += await wrong_tables(ground.database_url, books)
    wrong += await wrong_replays(ground)
    streams = {account.stream for account in accounts}
    uncharged = sum(
        request.account in streams and request.reported is None and request_id in said
        for request_id, request in books.requests.items()
    )
    return Verdict(wrong, books, uncharged)


async def until_drained(ground: Ground) -> None:
    """Every consumer has applied the last row, and Kafka has acknowledged it."""
    async with (
        asyncio.timeout(DRAINED_TIMEOUT_S),
        await connect(ground.database_url, application="test") as connection,
    ):
        while True:
            published = ground.broker is None or await fetch_one(connection, PUBLISHED) == (True,)
            lags = await list_lags(connection, live_consumers())
            if published and not any(lag.rows or lag.parked for lag in lags):
                return
            await asyncio.sleep(0.05)


def wrong_provider_calls(ground: Ground, books: Books) -> list[str]:
    """I12: no provider was called without a hold, nor more often than the outcome tells."""
    calls = Counter(seen.request_id for seen in ground.upstream.seen)
    wrong = [f"I12: {one} was sent without a hold" for one in calls if one not in books.requests]
    for request_id, count in calls.items():
        request = books.requests.get(request_id)
        # Of a request whose process died only the sweep tells, and it knows of no attempts. An
        # attempt on a connection that had gone stale is made again (backend/kit/outbound_http.py).
        if request is not None and not request.swept and count > 2 * request.attempts:
            wrong.append(f"I12: {request_id} was sent {count} times, said {request.attempts}")
    return wrong


def believable(said: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without reports that no provider can mean."""

    def counts(usage: dict[str, Any]) -> bool:
        numbers = (usage["prompt_tokens"], usage["completion_tokens"])
        return all(isinstance(number, int) and number >= 0 for number in numbers)

    return {request_id: usage for request_id, usage in said.items() if counts(usage)}


async def wrong_tables(database_url: str, books: Books) -> list[str]:
    """I9: states and the balances that people read are what the log adds up to."""
    async with await connect(database_url, application="test") as connection:
        states = await fetch_all(connection, STATES)
        balances = await fetch_all(connection, BALANCES)
    wrong = [f"I9: {s} has no balance" for s in books.balances.keys() - {b[0] for b in balances}]
    for stream, version, state in states:
        kept, due = msgspec.json.decode(state), books.balances[stream]
        held = (kept.get("issued_upt", 0), kept.get("charged_upt", 0), kept.get("held_upt", 0))
        if (version, *held) != (due.version, due.granted_upt, due.charged_upt, due.held_upt):
            wrong.append(f"I9: the state of {stream} is not its log's sum")
    for stream, issued, charged, held_upt, available in balances:
        due = books.balances[stream]
        left_upt = due.granted_upt - due.charged_upt - due.held_upt
        if (issued, charged, held_upt, available) != (
            due.granted_upt,
            due.charged_upt,
            due.held_upt,
            left_upt,
        ):
            wrong.append(f"I9: the balance of {stream} is not its log's sum")
    return wrong


async def wrong_replays(ground: Ground) -> list[str]:
    """The product's own audit, and that table and Kafka replay to one digest."""
    url = ground.database_url
    bootstrap = None if ground.broker is None else ground.broker.bootstrap
    report = await run_audit(AuditAsked(url), ALL_FOLDS)
    wrong = [f"audit {one.id}: {one.first}" for one in report.checks if not one.ok]
    table = await replay_table(url, ALL_FOLDS)
    wrong += [f"I9: replay of the table: {one}" for one in table.differences[:3]]
    if bootstrap is not None:
        kafka = await replay_kafka(url, bootstrap, ALL_FOLDS)
        wrong += [f"I12: replay of Kafka: {one}" for one in kafka.differences[:3]]
        if (kafka.events, kafka.digest) != (table.events, table.digest):
            wrong.append(f"I12: Kafka has {kafka.events} events, the table {table.events}")
    return wrong
