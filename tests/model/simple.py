"""What an account is, said without the ledger's own words: it only adds, subtracts and counts."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta

import msgspec

from schemas.prices import Free, PerCall, PerToken, Price
from schemas.usage import Usage


class Under(msgspec.Struct):
    """A request under way: how much is set aside, by which key, and what pays for it."""

    key: int
    upt: int
    limit: int | None = None
    day: int = 0
    item: str = ""
    month: int = 0


class Simple:
    def __init__(self) -> None:
        self.granted = self.paid = self.month = 0
        self.open: dict[str, Under] = {}
        self.ended: dict[str, str] = {}
        self.spent: dict[tuple[int, int], int] = {}
        self.used: dict[str, int] = {}

    @property
    def free(self) -> int:
        return self.granted - self.paid - sum(one.upt for one in self.open.values())

    def reach(self, one: Under) -> int:
        """What may still be set aside for it: all that is free, or left of its key's limit."""
        if one.limit is None:
            return self.free
        if any(key == one.key and day > one.day for key, day in self.spent):
            return 0
        under = sum(o.upt for o in self.open.values() if o.key == one.key and o.limit is not None)
        return max(0, min(self.free, one.limit - self.spent.get((one.key, one.day), 0) - under))

    def hold(self, request: str, one: Under, least: int, wanted: int) -> int | None:
        if least > self.reach(one):
            return None
        one.upt = min(wanted, self.reach(one))
        self.open[request] = one
        return one.upt

    def use(self, request: str, key: int, item: str, month: int, calls: int) -> bool:
        """One call of a plan's item; False: none is left in this month."""
        used = self.used if month == self.month else {}
        if calls != -1 and used.get(item, 0) >= calls:
            return False
        self.month, self.used = month, {**used, item: used.get(item, 0) + 1}
        self.open[request] = Under(key, 0, item=item, month=month)
        return True

    def extend(self, request: str, wanted: int) -> int:
        more = max(0, min(wanted, self.reach(self.open[request])))
        self.open[request].upt += more
        return more

    def end(self, request: str, due: int, how: str) -> int:
        """What is charged; one that costs nothing gives its call back, in the same month."""
        if due > self.open[request].upt:
            self.extend(request, due - self.open[request].upt)
        one = self.open.pop(request)
        charged = min(due, one.upt)
        self.paid += charged
        if one.limit is not None:
            self.spent[one.key, one.day] = self.spent.get((one.key, one.day), 0) + charged
        if how == "released" and one.item and one.month == self.month:
            self.used[one.item] -= 1
        self.ended[request] = how
        return charged

    def late(self, one: Under, due: int) -> int:
        """What is charged for usage that came after the end, within the same limits."""
        charged = min(due, self.reach(one))
        self.paid += charged
        if one.limit is not None:
            self.spent[one.key, one.day] = self.spent.get((one.key, one.day), 0) + charged
        return charged


def price_of(price: Price, usage: Usage, times_ppm: int = 1_000_000) -> int:
    """Whole micro-points, from the price list's own words."""
    match price:
        case PerCall(call_npt):
            nano = call_npt
        case PerToken(input_npt, output_npt, _):
            nano = usage.input * input_npt + usage.output * output_npt
        case _:
            assert isinstance(price, Free)
            nano = 0
    return -(-nano * times_ppm // 1_000_000_000)


def months_after(begin_us: int, months: int) -> int:
    """So many calendar months later in UTC, or the month's last day."""
    begin = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=begin_us)
    years, month = divmod(begin.month - 1 + months, 12)
    year, month = begin.year + years, month + 1
    there = begin.replace(year=year, month=month, day=min(begin.day, monthrange(year, month)[1]))
    return (there - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def month_of(anchor_us: int, at_us: int) -> int:
    """How many whole months counted from the anchor are over."""
    months = 0
    while months_after(anchor_us, months + 1) <= at_us:
        months += 1
    return months
