"""A provider's bill in one shape, whatever file it came from. Pure; knows no provider.

Periods are [from, to) in microseconds since 1970. Costs are exact decimals in the bill's currency.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from schemas.errors import BadRequest

LINES_MAX: Final = 200_000
"""Periods times models: a month of minutes for a handful of models."""
NUMBER_MAX: Final = 10**18
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class BillFile(msgspec.Struct, frozen=True):
    name: str
    data: bytes


class Period(msgspec.Struct, frozen=True, order=True):
    from_us: int
    to_us: int


class Used(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a bill says was used; None: it does not say. Input in disjoint parts."""

    requests: int | None = None
    uncached: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None

    @property
    def says(self) -> bool:
        return any(getattr(self, name) is not None for name in USED_FIELDS)


USED_FIELDS: Final = ("requests", "uncached", "cached", "cache_write", "output")


class BillLine(msgspec.Struct, frozen=True):
    """All that a bill says of one model in one period."""

    period: Period
    model: str
    used: Used = Used()
    rounding: int = 0
    """How far a count may be off, tokens: half of the unit it is given in, per row."""
    cost: Decimal | None = None
    cost_rounding: Decimal = Decimal(0)
    """How far the cost may be off: half of its last digit, per row."""
    listed: Decimal | None = None
    """What the file's own unit prices make of its own counts."""

    def joined(self, other: BillLine) -> BillLine:
        """Both together; period and model stay."""
        return BillLine(
            self.period,
            self.model,
            Used(
                *(_sum(getattr(self.used, name), getattr(other.used, name)) for name in USED_FIELDS)
            ),
            self.rounding + other.rounding,
            _total(self.cost, other.cost),
            self.cost_rounding + other.cost_rounding,
            _total(self.listed, other.listed),
        )


class Bill(msgspec.Struct, frozen=True):
    currency: str
    usage: tuple[BillLine, ...]
    """By period and model, sorted; no two periods overlap."""
    costs: tuple[BillLine, ...]
    """The same for costs, whose periods may be others."""
    periods: tuple[Period, ...]
    """Every period of which the usage is told, empty ones too; of costs where no usage is."""


class BillRows:
    """Adds up a file's rows; `bill` when all have been taken."""

    def __init__(self) -> None:
        self._usage: Final[dict[tuple[Period, str], BillLine]] = {}
        self._costs: Final[dict[tuple[Period, str], BillLine]] = {}
        self._periods: Final[set[Period]] = set()
        self._currencies: Final[set[str]] = set()

    def told(self, period: Period) -> None:
        """Usage of this period is told, even if there is none."""
        if period.to_us <= period.from_us:
            raise BadRequest("The bill has a period that ends before it begins.")
        self._periods.add(period)

    def use(self, period: Period, model: str, used: Used, rounding: int = 0) -> None:
        self.told(period)
        line = BillLine(period, _named(model), used, rounding)
        self._add(self._usage, line)

    def charge(
        self, period: Period, model: str, cost: Decimal, currency: str, *, exact: bool = False
    ) -> None:
        self._currencies.add(currency.upper())
        rounding = Decimal(0) if exact else half_of_last_digit(cost)
        self._add(self._costs, BillLine(period, _named(model), cost=cost, cost_rounding=rounding))

    def list_at(self, period: Period, model: str, listed: Decimal) -> None:
        """What the file's own unit prices make of a row."""
        self._add(self._costs, BillLine(period, _named(model), listed=listed))

    def bill(self) -> Bill:
        """Raises BadRequest for a bill that says nothing, or the same time twice."""
        if not self._usage and not self._costs and not self._periods:
            raise BadRequest("The bill is empty.")
        if len(self._currencies) > 1:
            raise BadRequest(f"The bill mixes currencies: {', '.join(sorted(self._currencies))}.")
        periods = sorted(self._periods or {period for period, _ in self._costs})
        _check_apart(periods)
        return Bill(
            currency=next(iter(self._currencies), ""),
            usage=_sorted(self._usage),
            # Unit prices without a cost to compare them with say nothing of their own.
            costs=tuple(line for line in _sorted(self._costs) if line.cost is not None),
            periods=tuple(periods),
        )

    def _add(self, lines: dict[tuple[Period, str], BillLine], line: BillLine) -> None:
        key = (line.period, line.model)
        before = lines.get(key)
        if before is None and len(lines) >= LINES_MAX:
            raise BadRequest(f"The bill has more than {LINES_MAX} periods and models.")
        lines[key] = line if before is None else before.joined(line)


def half_of_last_digit(cost: Decimal) -> Decimal:
    """`0.06` may be 0.055 to 0.065."""
    exponent = cost.as_tuple().exponent
    assert isinstance(exponent, int), "a number, not infinite"
    return Decimal((0, (5,), exponent - 1))


def table_of(file: BillFile) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, in UTF-8 with or without a mark at its start.

    Raises BadRequest.
    """
    try:
        reader = csv.DictReader(io.StringIO(file.data.decode("utf-8-sig"), newline=""))
        rows = [
            {(name or "").strip(): (value or "").strip() for name, value in row.items()}
            for row in reader
            if None not in row
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(f"{file.name} is no CSV file: {error}.") from error
    if not reader.fieldnames:
        raise BadRequest(f"{file.name} is empty.")
    return rows


def whole(text: str | None, what: str) -> int:
    """A count: `1000`, `3.0` or empty for none. Raises BadRequest."""
    number = exact(text or "0", what)
    if number != number.to_integral_value() or number < 0:
        raise BadRequest(f"{what} is {text!r} in the bill, which is no count.")
    return int(number)


def exact(text: str, what: str) -> Decimal:
    """Raises BadRequest for what is no number of this world."""
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise BadRequest(f"{what} is {text[:40]!r} in the bill, which is no number.") from error
    if not number.is_finite() or abs(number) > NUMBER_MAX:
        raise BadRequest(f"{what} is {text[:40]!r} in the bill, which is no number.")
    return number


def moment_us(text: str, zone: tzinfo) -> int:
    """An ISO 8601 time; one without an offset is meant in `zone`. Raises BadRequest."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(f"{text[:40]!r} is no time.") from error
    return _since_epoch(moment if moment.tzinfo else moment.replace(tzinfo=zone))


def day_of(text: str, zone: tzinfo) -> Period:
    """A calendar day in `zone`, written `2026-04-27` or `20260427`. Raises BadRequest."""
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(f"{text[:40]!r} is no date.") from error
    begin = datetime(day.year, day.month, day.day, tzinfo=zone)
    following = day + timedelta(days=1)
    end = datetime(following.year, following.month, following.day, tzinfo=zone)
    return Period(_since_epoch(begin), _since_epoch(end))


def _since_epoch(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND


def _named(model: str) -> str:
    if not model:
        raise BadRequest("The bill has a row that names no model: export it grouped by model.")
    return model


def _total(one: Decimal | None, two: Decimal | None) -> Decimal | None:
    if one is None or two is None:
        return two if one is None else one
    return one + two


def _sum(one: int | None, two: int | None) -> int | None:
    if one is None or two is None:
        return two if one is None else one
    return one + two


def _sorted(lines: dict[tuple[Period, str], BillLine]) -> tuple[BillLine, ...]:
    return tuple(lines[key] for key in sorted(lines))


def _check_apart(periods: Iterable[Period]) -> None:
    before: Period | None = None
    for period in periods:
        if before is not None and period.from_us < before.to_us:
            raise BadRequest("The bill tells of the same time twice: its periods overlap.")
        before = period
