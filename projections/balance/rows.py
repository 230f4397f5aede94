"""What a row of `balance` says of an account. Pure."""

from __future__ import annotations

import msgspec

from backend.journal.consumer import Arrived
from backend.ledger.account import ACCOUNT, Account


class BalanceRow(msgspec.Struct, frozen=True, gc=False):
    """Amounts in micro-points. `issued_upt` is granted and corrected; posted = issued − charged."""

    stream: str
    person: int
    issued_upt: int
    charged_upt: int
    posted_upt: int
    held_upt: int
    available_upt: int
    shortfall_upt: int
    open_holds: int
    version: int
    hash: str
    at_us: int
    state: msgspec.Raw
    plan_level: int | None = None
    """Of the subscription, until its end is recorded; None: none."""
    plan_until_us: int | None = None
    plan_used: str | None = None
    """Calls by item in the period that was counted last, as JSON."""


def row_of(account: Account, last: Arrived) -> BalanceRow:
    """The row of an account whose last event is `last`."""
    plan = account.subscription
    return BalanceRow(
        stream=last.row.stream,
        person=account.person,
        issued_upt=account.issued_upt,
        charged_upt=account.charged_upt,
        posted_upt=account.posted_upt,
        held_upt=account.held_upt,
        available_upt=account.available_upt,
        shortfall_upt=account.shortfall_upt,
        open_holds=len(account.holds),
        version=last.row.version,
        hash=last.row.hash.hex(),
        at_us=last.row.at_us,
        state=msgspec.Raw(ACCOUNT.encode(account)),
        plan_level=None if plan is None else plan.level,
        plan_until_us=None if plan is None else plan.until_us,
        plan_used=None if plan is None else msgspec.json.encode(plan.used, order="sorted").decode(),
    )
