"""Reads the log for a reconciliation with a provider's bill. Reads only, in short transactions."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from hashlib import sha256
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from backend.journal.reader import PAGE_ROWS, head
from projections.comparison import connect_for_reading
from projections.reconcile import anthropic, deepseek, openai
from projections.reconcile.bill import Bill, BillFile
from projections.reconcile.compare import Reconciliation, reconcile
from projections.reconcile.ours import OurUsage
from projections.reconcile.tariff import NO_TARIFF, Tariff
from projections.replay import Progress, no_progress
from projections.row_source import TableRows, each_page
from schemas.errors import BadRequest
from schemas.event import Recorded
from schemas.ids import ChannelId


class Provider(StrEnum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    DEEPSEEK = "deepseek"


HOSTS: Final = {
    Provider.OPENAI: "openai.com",
    Provider.ANTHROPIC: "anthropic.com",
    Provider.DEEPSEEK: "deepseek.com",
}
"""Channels whose address ends so lead to the provider, where none is named."""


class ReconcileAsked(msgspec.Struct, frozen=True):
    database_url: str
    channels: frozenset[ChannelId]
    """Those that lead to the provider."""
    tariff: Tariff = NO_TARIFF
    page_rows: int = PAGE_ROWS


def parse_bill(provider: Provider, files: Sequence[BillFile], time_zone: str | None) -> Bill:
    """`time_zone` (IANA) is whose times and days the export means where it does not say; None:
    the provider's own. Raises BadRequest.
    """
    if len({sha256(file.data).digest() for file in files}) < len(files):
        raise BadRequest("The same file was given twice.")
    match provider:
        case Provider.OPENAI:
            return openai.parse(files, _zone(time_zone or openai.TIME_ZONE))
        case Provider.ANTHROPIC:
            return anthropic.parse(files, _zone(time_zone or anthropic.TIME_ZONE))
        case Provider.DEEPSEEK:
            zone = _zone(time_zone or deepseek.TIME_ZONE)
            days = zone if time_zone else _zone("UTC")
            return deepseek.parse(files, zone, days=days)


def check_comparable(bill: Bill, tariff: Tariff) -> None:
    """Raises BadRequest where nothing of ours can be held against the bill."""
    if not bill.usage and bill.costs and not tariff.models:
        raise BadRequest(
            "This export has costs but no usage: give the usage export too, or --costs."
        )
    if tariff.currency and bill.currency and tariff.currency.upper() != bill.currency:
        raise BadRequest(f"The bill is in {bill.currency}, the costs are in {tariff.currency}.")


async def run_reconcile(
    asked: ReconcileAsked, bill: Bill, *, progress: Progress = no_progress
) -> Reconciliation:
    """Raises BadRequest, psycopg errors, UndecodableEvent."""
    check_comparable(bill, asked.tariff)
    fold = OurUsage(bill.periods, asked.channels)
    async with await connect_for_reading(asked.database_url, "suanpan reconcile") as connection:
        upto = await head(connection)
        done = 0

        def feed(page: list[Recorded]) -> None:
            nonlocal done
            fold.feed(page)
            done += len(page)
            progress("fold", done, max(upto.seq, done))

        await each_page(TableRows(connection, upto, asked.page_rows), feed)
    return reconcile(bill, fold.finish(), asked.tariff)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadRequest(f"{name[:40]!r} is no time zone; write Asia/Shanghai or UTC.") from error
