"""DeepSeek's monthly export: a ZIP of `amount-*.csv` and `cost-*.csv`, or those files themselves.

The shape is the platform's usage export (platform.deepseek.com/usage), as its files show it:
`amount` has `type` (`input_cache_hit_tokens`, `input_cache_miss_tokens`, `output_tokens`,
`request_count`), `price` per token and `amount`; `cost` has `cost` and `currency` per wallet.
Days are `start_time_iso`/`end_time_iso` with their offset (+08:00), in older files `utc_date`,
which is a UTC day. A time without an offset is Beijing's.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import Final

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

TIME_ZONE: Final = "Asia/Shanghai"
ENTRIES_MAX: Final = 64
ENTRY_BYTES_MAX: Final = 64 * 1024 * 1024
_FIELDS: Final = {
    "input_cache_hit_tokens": "cached",
    "input_cache_miss_tokens": "uncached",
    "input_tokens": "uncached",
    "output_tokens": "output",
    "request_count": "requests",
}


def parse(files: Sequence[BillFile], zone: tzinfo, *, days: tzinfo = UTC) -> Bill:
    """`days`: whose days `utc_date` means. Raises BadRequest for another shape."""
    rows = BillRows()
    for file in files:
        for table in _tables(file):
            _take(rows, table, zone, days)
    return rows.bill()


def _tables(file: BillFile) -> Iterator[BillFile]:
    if not file.data.startswith(b"PK"):
        yield file
        return
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".csv")]
            if not 0 < len(entries) <= ENTRIES_MAX:
                raise BadRequest(f"{file.name} holds no CSV files, or too many.")
            for entry in entries:
                with archive.open(entry) as opened:
                    data = opened.read(ENTRY_BYTES_MAX + 1)
                if len(data) > ENTRY_BYTES_MAX:
                    raise BadRequest(f"{entry.filename} is too large.")
                yield BillFile(entry.filename, data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BadRequest(f"{file.name} cannot be unpacked: {error}.") from error


def _take(rows: BillRows, file: BillFile, zone: tzinfo, days: tzinfo) -> None:
    for row in table_of(file):
        if "cost" in row:
            period = _period_of(row, zone, days)
            cost = exact(row["cost"] or "0", "cost")
            rows.charge(period, row.get("model", ""), cost, row.get("currency", "CNY"))
        elif "amount" in row and "type" in row:
            _take_amount(rows, _period_of(row, zone, days), row)
        else:
            raise BadRequest(f"{file.name} is neither an amount nor a cost file of DeepSeek's.")


def _take_amount(rows: BillRows, period: Period, row: dict[str, str]) -> None:
    field = _FIELDS.get(row["type"])
    if field is None:
        raise BadRequest(f"The bill counts {row['type'][:80]!r}, which is not known here.")
    count = whole(row["amount"], "amount")
    model = row.get("model", "")
    rows.use(period, model, Used(**{field: count}))
    if row.get("price"):
        rows.list_at(period, model, exact(row["price"], "price") * Decimal(count))


def _period_of(row: dict[str, str], zone: tzinfo, days: tzinfo) -> Period:
    if row.get("utc_date"):
        return day_of(row["utc_date"], days)
    begin, end = row.get("start_time_iso", ""), row.get("end_time_iso", "")
    return Period(moment_us(begin, zone), moment_us(end, zone))
