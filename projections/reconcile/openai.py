"""OpenAI's exports: the organization's completions usage and costs, as JSON pages or as CSV.

JSON: `GET /v1/organization/usage/completions` and `/v1/organization/costs` of the API reference
(platform.openai.com/docs/api-reference/usage): pages of buckets of results, times in Unix seconds.
CSV: the usage page's export of the same fields (`completions_usage_…`, `cost_…`), with
`start_time`, `end_time`, `amount_value`, `amount_currency`, `quantity`, `quantity_unit`,
`line_item`. Buckets are UTC. `input_tokens` includes cached ones and those written to the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from decimal import Decimal
from typing import Any, Final

import msgspec

from projections.reconcile.bill import (
    Bill,
    BillFile,
    BillRows,
    Period,
    Used,
    exact,
    moment_us,
    table_of,
    whole,
)
from schemas.errors import BadRequest

TIME_ZONE: Final = "UTC"
SECOND_US: Final = 1_000_000
_USAGE: Final = "organization.usage.completions.result"
_COSTS: Final = "organization.costs.result"
_UNITS: Final = {"tokens": 1, "1k tokens": 1_000, "1m tokens": 1_000_000}
"""What `quantity` counts; larger units round."""
_PARTS: Final = {
    "input": "uncached",
    "input_tokens": "uncached",
    "cached input": "cached",
    "cached_input_tokens": "cached",
    "cache write": "cache_write",
    "cache_write_input_tokens": "cache_write",
    "output": "output",
    "output_tokens": "output",
}
"""What follows the model in a line item."""


class _Amount(msgspec.Struct, frozen=True):
    value: Decimal
    currency: str


class _Result(msgspec.Struct, frozen=True):
    object: str
    model: str | None = None
    input_tokens: int = 0
    input_cached_tokens: int | None = None
    input_cache_write_tokens: int | None = None
    output_tokens: int = 0
    num_model_requests: int | None = None
    amount: _Amount | None = None
    line_item: str | None = None


class _Bucket(msgspec.Struct, frozen=True):
    start_time: int
    end_time: int
    results: tuple[_Result, ...] = ()


class _Page(msgspec.Struct, frozen=True):
    data: tuple[_Bucket, ...]
    has_more: bool = False
    next_page: str | None = None


def parse(files: Sequence[BillFile], zone: tzinfo) -> Bill:
    """Raises BadRequest for another shape, or where pages are missing."""
    rows = BillRows()
    following: str | None = None
    for file in files:
        if file.data.lstrip().startswith((b"{", b"[")):
            following = _take_pages(rows, file)
        else:
            _take_csv(rows, file, zone)
    if following is not None:
        raise BadRequest("The last page says that there are more: export all of them.")
    return rows.bill()


def _take_pages(rows: BillRows, file: BillFile) -> str | None:
    """One page, or a list of them; what the last one says comes next."""
    try:
        raw = msgspec.json.decode(file.data, type=tuple[_Page, ...] | _Page)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{file.name} is no page of OpenAI's usage or costs: {error}.") from error
    pages = (raw,) if isinstance(raw, _Page) else raw
    results = (result for page in pages for bucket in page.data for result in bucket.results)
    is_usage = all(result.object != _COSTS for result in results)
    for page in pages:
        for bucket in page.data:
            period = Period(bucket.start_time * SECOND_US, bucket.end_time * SECOND_US)
            if is_usage:
                rows.told(period)
            for result in bucket.results:
                _take_result(rows, period, result)
    last = pages[-1] if pages else None
    return last.next_page or "" if last is not None and last.has_more else None


def _take_result(rows: BillRows, period: Period, result: _Result) -> None:
    if result.object == _USAGE:
        cached = result.input_cached_tokens or 0
        written = result.input_cache_write_tokens
        used = Used(
            requests=result.num_model_requests,
            uncached=max(0, result.input_tokens - cached - (written or 0)),
            cached=cached,
            cache_write=written,
            output=result.output_tokens,
        )
        if any((used.requests, result.input_tokens, used.output)):
            rows.use(period, result.model or "", used)
    elif result.object == _COSTS and result.amount is not None:
        _take_cost(
            rows, period, result.line_item or "", result.amount.value, result.amount.currency
        )
    else:
        raise BadRequest(f"{result.object[:80]!r} is neither completions usage nor costs.")


def _take_cost(
    rows: BillRows, period: Period, line_item: str, cost: Decimal, currency: str
) -> None:
    if cost:
        model = line_item.rpartition(", ")[0] or line_item
        rows.charge(period, model, cost, currency)


def _take_csv(rows: BillRows, file: BillFile, zone: tzinfo) -> None:
    for row in table_of(file):
        period = _period_of(row, zone)
        if row.get("amount_value"):
            cost = exact(row["amount_value"], "amount_value")
            line_item = row.get("line_item", "")
            _take_cost(rows, period, line_item, cost, row.get("amount_currency", ""))
            _take_quantity(rows, period, line_item, row)
        elif "input_tokens" in row:
            _take_usage(rows, period, row)
        elif "amount_value" not in row and set(row) - set(_TIMES):
            raise BadRequest(f"{file.name} has neither `input_tokens` nor `amount_value`.")


_TIMES: Final = ("start_time", "end_time", "start_time_iso", "end_time_iso")


def _period_of(row: dict[str, str], zone: tzinfo) -> Period:
    if row.get("start_time") and row.get("end_time"):
        begin, end = whole(row["start_time"], "start_time"), whole(row["end_time"], "end_time")
        return Period(begin * SECOND_US, end * SECOND_US)
    begin_text, end_text = row.get("start_time_iso", ""), row.get("end_time_iso", "")
    return Period(moment_us(begin_text, zone), moment_us(end_text, zone))


def _take_usage(rows: BillRows, period: Period, row: dict[str, Any]) -> None:
    rows.told(period)
    total = whole(row["input_tokens"], "input_tokens")
    cached = whole(row.get("input_cached_tokens"), "input_cached_tokens")
    written = row.get("input_cache_write_tokens")
    cache_write = whole(written, "input_cache_write_tokens") if written else None
    requests = row.get("num_model_requests")
    used = Used(
        requests=whole(requests, "num_model_requests") if requests else None,
        uncached=max(0, total - cached - (cache_write or 0)),
        cached=cached,
        cache_write=cache_write,
        output=whole(row.get("output_tokens"), "output_tokens"),
    )
    if any((used.requests, total, used.output)):
        rows.use(period, row.get("model", ""), used)


def _take_quantity(rows: BillRows, period: Period, line_item: str, row: dict[str, str]) -> None:
    """A cost row may say how much of what it charges for."""
    model, _, item = line_item.rpartition(", ")
    part, unit = _PARTS.get(item.strip().lower()), row.get("quantity_unit", "").lower()
    if part is None or not row.get("quantity") or unit not in _UNITS:
        return
    quantity = exact(row["quantity"], "quantity") * _UNITS[unit]
    rounding = 0
    if _UNITS[unit] > 1:
        exponent = exact(row["quantity"], "quantity").as_tuple().exponent
        assert isinstance(exponent, int), "a number, not infinite"
        rounding = int(Decimal((0, (5,), exponent - 1)) * _UNITS[unit])
    rows.use(period, model, Used(**{part: round(quantity)}), rounding)
