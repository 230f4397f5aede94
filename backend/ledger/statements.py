"""What people read of an account's points: balance now and at any moment, and every movement.

Eventually consistent and for display, from the read tables: a decision never reads here.
"""

from __future__ import annotations

from typing import Final, LiteralString
from uuid import UUID

import msgspec

from backend.journal.reader import read_stream
from backend.kit.postgres import Connection, fetch_one
from backend.ledger.account import ACCOUNT
from backend.ledger.planned import fetch_planned
from backend.ledger.record_filters import LIMIT_MAX, StatementFilter
from backend.ledger.record_pages import StatementPlace
from schemas.errors import BadRequest
from schemas.registry import decode

FIND_BALANCE: Final = """
SELECT stream, posted_upt, held_upt, available_upt, issued_upt, charged_upt, shortfall_upt,
    open_holds, version, at_us
FROM read.balance WHERE stream = %(account)s
"""
FIND_POSTED_AT: Final = """
SELECT balance_upt, version FROM read.statement
WHERE stream = %(account)s AND at_us <= %(at_us)s AND at_us > %(skew_us)s + (
    SELECT coalesce(max(s.at_us), 0) FROM read.statement s
    WHERE s.stream = %(account)s AND s.at_us <= %(at_us)s)
ORDER BY version DESC LIMIT 1
"""
"""The last in history's order among those of the last minute before: writers' clocks differ."""
LIST_OF_ACCOUNT: Final = """
SELECT stream, version, kind, amount_upt, balance_upt, at_us, event_id, command_id, shard::integer,
    request_id::text, model, price_model, price_version, basis, swept, grant_kind, actor,
    explains_event_id, key, channel, source, gift_type, plan_level, plan_version, plan_months,
    credit_upt
FROM read.statement
WHERE stream = %(account)s AND version < %(version)s
    AND at_us >= %(since_us)s AND at_us < %(until_us)s
    AND (%(kinds)s::text[] IS NULL OR kind = ANY(%(kinds)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR abs(amount_upt) >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR abs(amount_upt) <= %(most_upt)s::bigint)
    AND (%(sign)s::integer = 0 OR sign(amount_upt) = %(sign)s::integer)
ORDER BY version DESC LIMIT %(limit)s
"""
LIST_OF_ALL: Final = """
SELECT stream, version, kind, amount_upt, balance_upt, at_us, event_id, command_id, shard::integer,
    request_id::text, model, price_model, price_version, basis, swept, grant_kind, actor,
    explains_event_id, key, channel, source, gift_type, plan_level, plan_version, plan_months,
    credit_upt
FROM read.statement
WHERE (at_us, stream, version) < (%(at_us)s, %(stream)s::text COLLATE "C", %(version)s)
    AND at_us >= %(since_us)s AND at_us < %(until_us)s
    AND (%(kinds)s::text[] IS NULL OR kind = ANY(%(kinds)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR abs(amount_upt) >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR abs(amount_upt) <= %(most_upt)s::bigint)
    AND (%(sign)s::integer = 0 OR sign(amount_upt) = %(sign)s::integer)
ORDER BY at_us DESC, stream DESC, version DESC LIMIT %(limit)s
"""
LIST_ONWARD: Final = """
SELECT stream, version, kind, amount_upt, balance_upt, at_us, event_id, command_id, shard::integer,
    request_id::text, model, price_model, price_version, basis, swept, grant_kind, actor,
    explains_event_id, key, channel, source, gift_type, plan_level, plan_version, plan_months,
    credit_upt
FROM read.statement
WHERE (stream, version) > (%(stream)s::text COLLATE "C", %(version)s)
    AND (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND at_us >= %(since_us)s AND at_us < %(until_us)s
    AND (%(kinds)s::text[] IS NULL OR kind = ANY(%(kinds)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR abs(amount_upt) >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR abs(amount_upt) <= %(most_upt)s::bigint)
    AND (%(sign)s::integer = 0 OR sign(amount_upt) = %(sign)s::integer)
ORDER BY stream, version LIMIT %(limit)s
"""
TOTALS: Final = """
SELECT count(*), coalesce(sum(amount_upt) FILTER (WHERE amount_upt > 0), 0)::bigint,
    coalesce(-sum(amount_upt) FILTER (WHERE amount_upt < 0), 0)::bigint,
    coalesce(-sum(amount_upt) FILTER (WHERE kind IN ('settle', 'late')), 0)::bigint,
    coalesce(-sum(amount_upt) FILTER (WHERE starts_with(kind, 'plan_')), 0)::bigint
FROM read.statement
WHERE (%(account)s::text IS NULL OR stream = %(account)s::text)
    AND at_us >= %(since_us)s AND at_us < %(until_us)s
    AND (%(kinds)s::text[] IS NULL OR kind = ANY(%(kinds)s::text[]))
    AND (%(key)s::bigint IS NULL OR key = %(key)s::bigint)
    AND (%(model)s::text IS NULL OR model = %(model)s::text)
    AND (%(channel)s::bigint IS NULL OR channel = %(channel)s::bigint)
    AND (%(request_id)s::uuid IS NULL OR request_id = %(request_id)s::uuid)
    AND (%(basis)s::text IS NULL OR basis = %(basis)s::text)
    AND (%(least_upt)s::bigint IS NULL OR abs(amount_upt) >= %(least_upt)s::bigint)
    AND (%(most_upt)s::bigint IS NULL OR abs(amount_upt) <= %(most_upt)s::bigint)
    AND (%(sign)s::integer = 0 OR sign(amount_upt) = %(sign)s::integer)
"""

SKEW_US: Final = 60_000_000
"""By so much two writers' clocks may differ and a balance at a moment is still right."""
FOLD_ROWS: Final = 250
"""Few: the event loop that folds a page answers calls as well."""


class Balance(msgspec.Struct, frozen=True):
    """Micro-points of an account after `version`. available = posted − held; issued: ever given."""

    account: str
    posted_upt: int
    held_upt: int
    available_upt: int
    issued_upt: int
    charged_upt: int
    shortfall_upt: int
    open_holds: int
    version: int
    at_us: int


class PostedAt(msgspec.Struct, frozen=True):
    """What was posted at a moment, and the version of the movement that made it so (0: none)."""

    posted_upt: int
    version: int


class ExactAt(msgspec.Struct, frozen=True):
    """The whole account after its last event up to a moment; `version` 0: it was not there yet."""

    posted_upt: int
    held_upt: int
    available_upt: int
    version: int


class StatementEntry(msgspec.Struct, frozen=True):
    """One movement: `amount_upt` signed, `balance_upt` posted after it.

    `kind`: grant, gift, invitation, plan_buy, plan_renew, plan_change, settle, correct or late.
    `shard` is the partition of `suanpan.ledger` that carries the event; `version` is its version
    in the account's stream. `credit_upt` of a change of plan is within the amount.
    """

    account: str
    version: int
    kind: str
    amount_upt: int
    balance_upt: int
    at_us: int
    event_id: UUID
    command_id: UUID
    shard: int
    request_id: str | None
    model: str | None
    price_model: str | None
    price_version: int | None
    basis: str | None
    swept: bool
    grant_kind: str | None
    actor: str | None
    explains_event_id: UUID | None
    key: int | None
    channel: int | None
    source: str | None
    gift_type: str | None
    plan_level: int | None
    plan_version: int | None
    plan_months: int | None
    credit_upt: int | None


class StatementTotals(msgspec.Struct, frozen=True):
    """Sums over movements: in − out is what they changed the balances by.

    `charged_upt`: settles and late usage; `plans_upt`: plans, less what changes credited.
    """

    entries: int
    in_upt: int
    out_upt: int
    charged_upt: int
    plans_upt: int


async def find_balance(connection: Connection, account: str) -> Balance | None:
    """The balance of `account:…` as projected, or None before its first event has arrived."""
    row = await fetch_one(connection, FIND_BALANCE, {"account": account})
    return None if row is None else Balance(*row)


async def find_posted_at(connection: Connection, account: str, at_us: int) -> PostedAt:
    """What an account had at a moment, its end included, by the statement's own times."""
    arguments = {"account": account, "at_us": at_us, "skew_us": -SKEW_US}
    row = await fetch_one(connection, FIND_POSTED_AT, arguments)
    return PostedAt(0, 0) if row is None else PostedAt(*row)


async def fold_to(
    connection: Connection, account: str, at_us: int, events_max: int | None = None
) -> ExactAt:
    """What an account had, held and could spend at a moment: its events folded once more.

    Raises BadRequest for a history of more than `events_max` events, UndecodableEvent.
    """
    state = reached = ACCOUNT.empty
    version = at_version = 0
    while rows := await read_stream(connection, account, version + 1, FOLD_ROWS):
        for row in rows:
            state = ACCOUNT.apply(state, decode(row), row.version, row.at_us)
            if row.at_us <= at_us:
                reached, at_version = state, row.version
        version = rows[-1].version
        if rows[-1].at_us > at_us + SKEW_US:
            break
        if events_max is not None and version >= events_max:
            raise BadRequest("This history is too long to be folded here: ask without `exact`.")
    return ExactAt(reached.posted_upt, reached.held_upt, reached.available_upt, at_version)


async def list_statement(
    connection: Connection,
    wanted: StatementFilter,
    limit: int,
    before: StatementPlace | None = None,
) -> list[StatementEntry]:
    """Movements, newest first, at most 1,000: of an account in its history's order, of all by time.

    The next page is `before` = the last entry's place.
    """
    place = before or StatementPlace()
    query = LIST_OF_ALL if wanted.account is None else LIST_OF_ACCOUNT
    return await _entries(connection, query, wanted, limit, place)


async def list_statement_onward(
    connection: Connection, wanted: StatementFilter, limit: int, after: StatementPlace
) -> list[StatementEntry]:
    """Movements from the first on, account by account: for exports. `after`: the last one's place,
    of which the time does not count.
    """
    return await _entries(connection, LIST_ONWARD, wanted, limit, after)


async def statement_totals(connection: Connection, wanted: StatementFilter) -> StatementTotals:
    (row,) = await fetch_planned(connection, TOTALS, msgspec.structs.asdict(wanted))
    return StatementTotals(*row)


async def _entries(
    connection: Connection,
    query: LiteralString,
    wanted: StatementFilter,
    limit: int,
    place: StatementPlace,
) -> list[StatementEntry]:
    arguments = {
        **msgspec.structs.asdict(wanted),
        **msgspec.structs.asdict(place),
        "limit": min(limit, LIMIT_MAX),
    }
    return [StatementEntry(*row) for row in await fetch_planned(connection, query, arguments)]
