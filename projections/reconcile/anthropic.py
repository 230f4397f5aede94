"""Anthropic's exports: the messages usage report and the cost report, and the console's CSV.

JSON: `GET /v1/organizations/usage_report/messages` (grouped by model) and `/cost_report` (grouped
by description) of platform.claude.com/docs/en/api/admin: buckets in UTC, input in disjoint parts,
amounts in the currency's lowest unit ("123.45" in USD is $1.2345).
CSV: the console's usage export (`usage_date_utc`, `model_version`, `usage_input_tokens_no_cache`
and so on), one row per UTC day. Neither counts requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from decimal import Decimal
from typing import Final

import msgspec

from projections.reconcile.bill import (
    Bill,
    BillFile,
    BillRows,
    Period,
    Used,
    day_of,
    exact,
    moment_us,
    table_of,
    whole,
)
from schemas.errors import BadRequest

TIME_ZONE: Final = "UTC"
CENTS: Final = Decimal(100)


class _CacheCreation(msgspec.Struct, frozen=True):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class _Result(msgspec.Struct, frozen=True):
    """A usage item or a cost item: `amount` says which."""

    model: str | None = None
    uncached_input_tokens: int | None = None
    cache_creation: _CacheCreation = _CacheCreation()
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    amount: str | None = None
    currency: str = "USD"
    cost_type: str | None = None


class _Bucket(msgspec.Struct, frozen=True):
    starting_at: str
    ending_at: str
    results: tuple[_Result, ...] = ()


class _Page(msgspec.Struct, frozen=True):
    data: tuple[_Bucket, ...]
    has_more: bool = False


def parse(files: Sequence[BillFile], zone: tzinfo) -> Bill:
    """Raises BadRequest for another shape, or where pages are missing."""
    rows = BillRows()
    more = False
    for file in files:
        if file.data.lstrip().startswith((b"{", b"[")):
            more = _take_pages(rows, file, zone)
        else:
            _take_csv(rows, file, zone)
    if more:
        raise BadRequest("The last page says that there are more: export all of them.")
    return rows.bill()


def _take_pages(rows: BillRows, file: BillFile, zone: tzinfo) -> bool:
    try:
        raw = msgspec.json.decode(file.data, type=tuple[_Page, ...] | _Page)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{file.name} is no page of Anthropic's reports: {error}.") from error
    pages = (raw,) if isinstance(raw, _Page) else raw
    results = (result for page in pages for bucket in page.data for result in bucket.results)
    is_usage = all(result.amount is None for result in results)
    for page in pages:
        for bucket in page.data:
            period = Period(moment_us(bucket.starting_at, zone), moment_us(bucket.ending_at, zone))
            if is_usage:
                rows.told(period)
            for result in bucket.results:
                _take_result(rows, period, result)
    return bool(pages) and pages[-1].has_more


def _take_result(rows: BillRows, period: Period, result: _Result) -> None:
    if result.amount is not None:
        cost = exact(result.amount, "amount") / CENTS
        if cost:
            # Searches and code execution name no model: they stand under their own name.
            rows.charge(period, result.model or result.cost_type or "", cost, result.currency)
        return
    if result.uncached_input_tokens is None:
        raise BadRequest("The report has a result that is neither usage nor cost.")
    written = result.cache_creation
    used = Used(
        uncached=result.uncached_input_tokens,
        cached=result.cache_read_input_tokens,
        cache_write=written.ephemeral_5m_input_tokens + written.ephemeral_1h_input_tokens,
        output=result.output_tokens,
    )
    if any((used.uncached, used.cached, used.cache_write, used.output)):
        rows.use(period, result.model or "", used)


def _take_csv(rows: BillRows, file: BillFile, zone: tzinfo) -> None:
    for row in table_of(file):
        if "usage_date_utc" not in row or "usage_input_tokens_no_cache" not in row:
            raise BadRequest(f"{file.name} is no export of Anthropic's usage.")
        written = (
            whole(row.get(name), name)
            for name in ("usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h")
        )
        used = Used(
            uncached=whole(row["usage_input_tokens_no_cache"], "usage_input_tokens_no_cache"),
            cached=whole(row.get("usage_input_tokens_cache_read"), "cache_read"),
            cache_write=sum(written),
            output=whole(row.get("usage_output_tokens"), "usage_output_tokens"),
        )
        rows.use(day_of(row["usage_date_utc"], zone), row.get("model_version", ""), used)
