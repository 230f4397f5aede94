"""Plans as an operator writes them: one file for all levels, as TOML or JSON. Pure.

Reads and checks; what is wrong is said in one sentence (BadRequest).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from backend.catalog.checks import MODELS_MAX, NAME_CHARS_MAX, check_model
from schemas.errors import BadRequest
from schemas.money import (
    AMOUNT_UPT_MAX,
    POINTS_PER_CNY,
    MicroPoints,
    MoneyError,
    format_points,
    parse_points,
)
from schemas.plans import LEVEL_NAMES, TERMS_MONTHS, UNLIMITED, Plan, PlanItem
from schemas.prices import PPM

PLANS_BYTES_MAX: Final = 1024 * 1024
ITEMS_MAX: Final = 200
CALLS_MAX: Final = 10**9
ICON_CHARS_MAX: Final = 256
_PPM_PER_PERCENT: Final = PPM // 100


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person may have written wrong is refused, not left out."""


class WrittenItem(_Written, frozen=True):
    """Some models and how many calls a month they have together; -1: unlimited."""

    id: str
    models: tuple[str, ...]
    monthly_calls: int
    name: str = ""
    """Empty: its id."""
    icon: str = ""


class WrittenLevel(_Written, frozen=True, rename={"imports": "import"}):
    """`price`: CNY a month, a decimal string."""

    price: str | int
    name: str = ""
    """Empty: the level's own."""
    enabled: bool = True
    items: tuple[WrittenItem, ...] = ()
    imports: tuple[str, ...] = ()
    """Levels whose items are offered too; an own item with the same id wins."""


class WrittenPlans(_Written, frozen=True):
    """The whole file. A level that is left out stays as it is."""

    levels: dict[str, WrittenLevel]
    relay: bool = False
    """Whether calls of the relay API may use plans."""
    time_zone: str = "UTC"
    discounts: dict[str, str] = {}
    """By months: `{"12": "15%"}`."""


def read_plans(data: bytes) -> dict[int, Plan]:
    """The plans that a file defines, by level 1 to 3. Raises BadRequest."""
    if len(data) > PLANS_BYTES_MAX:
        raise BadRequest(f"A file of plans has at most {PLANS_BYTES_MAX} bytes.")
    try:
        if data.lstrip().startswith(b"{"):
            return plans_of(msgspec.json.decode(data, type=WrittenPlans))
        return plans_of(msgspec.convert(tomllib.loads(data.decode()), WrittenPlans))
    except UnicodeDecodeError as error:
        raise BadRequest("The plans are not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"The plans are no TOML: {error}.") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"The plans are not as they should be: {error}.") from error


def plans_of(written: WrittenPlans) -> dict[int, Plan]:
    """Raises BadRequest."""
    if not written.levels:
        raise BadRequest("The plans name no level.")
    _check_time_zone(written.time_zone)
    discounts = _discounts(written.discounts)
    levels: dict[int, WrittenLevel] = {}
    for name, level in written.levels.items():
        number = level_of(name)
        if number in levels:
            raise BadRequest(f"The level {LEVEL_NAMES[number]} is written twice.")
        levels[number] = level
    own = {number: _items(number, level) for number, level in levels.items()}
    return {
        number: Plan(
            name=_text(level.name or LEVEL_NAMES[number].capitalize(), "A plan's name"),
            month_price_upt=_price_upt(level.price),
            items=_offered(number, levels, own, ()),
            enabled=level.enabled,
            relay=written.relay,
            discounts=discounts,
            time_zone=written.time_zone,
        )
        for number, level in sorted(levels.items())
    }


def level_of(text: str) -> int:
    """1 to 3, of a number or of `basic`, `standard`, `pro`. Raises BadRequest."""
    folded = text.strip().lower()
    if folded in LEVEL_NAMES[1:]:
        return LEVEL_NAMES.index(folded)
    if folded in ("1", "2", "3"):
        return int(folded)
    raise BadRequest(f"{text[:40]!r} is no level; there are basic (1), standard (2) and pro (3).")


def plan_data(plan: Plan) -> dict[str, Any]:
    """A level for machines, in the form that a file has."""
    return {
        "name": plan.name,
        "price": format_cny(plan.month_price_upt),
        "month_points": format_points(plan.month_price_upt),
        "enabled": plan.enabled,
        "items": [
            {
                "id": item.id,
                "name": item.name,
                "icon": item.icon,
                "models": list(item.models),
                "monthly_calls": item.monthly_calls,
            }
            for item in plan.items
        ],
    }


def discounts_data(plan: Plan) -> dict[str, str]:
    """Percent by months."""
    return {str(months): f"{_percent(ppm)}%" for months, ppm in plan.discounts}


def format_cny(amount_upt: int) -> str:
    """What points are worth, exactly: a price in CNY has at most six decimals."""
    return format_points(amount_upt // POINTS_PER_CNY)


def _percent(ppm: int) -> str:
    return format_points(ppm * 100)


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadRequest(
            f"{name[:40]!r} is no time zone; write an IANA name such as Asia/Shanghai."
        ) from error


def _discounts(written: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    found: dict[int, int] = {}
    for text, percent in written.items():
        months = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
        if months not in TERMS_MONTHS:
            terms = ", ".join(map(str, TERMS_MONTHS))
            raise BadRequest(f"{text[:20]!r} is no term; there are {terms} months.")
        if months in found:
            raise BadRequest(f"The discount of {months} months is written twice.")
        found[months] = _discount_ppm(percent)
    return tuple(sorted((months, ppm) for months, ppm in found.items() if ppm))


def _discount_ppm(percent: str) -> int:
    what = f"{percent[:20]!r} is no discount; write a part of the price such as 5%."
    if not percent.strip().endswith("%"):
        raise BadRequest(what)
    try:
        ppm, rest = divmod(parse_points(percent.strip()[:-1].strip()), 100)
    except MoneyError as error:
        raise BadRequest(what) from error
    if rest or not 0 <= ppm < PPM:
        raise BadRequest("A discount is at least 0%, below 100%, and has at most four decimals.")
    return ppm


def _price_upt(text: str | int) -> MicroPoints:
    try:
        price = parse_points(str(text))
    except MoneyError as error:
        raise BadRequest(f"A plan's price is CNY a month: {error}.") from error
    month_upt = price * POINTS_PER_CNY
    if not 0 < month_upt * max(TERMS_MONTHS) <= AMOUNT_UPT_MAX:
        raise BadRequest("A plan's price is above zero, and no sum that no account holds.")
    return MicroPoints(month_upt)


def _items(number: int, level: WrittenLevel) -> tuple[PlanItem, ...]:
    items = tuple(_item(item) for item in level.items)
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        raise BadRequest(f"The level {LEVEL_NAMES[number]} has two items of one id.")
    return items


def _item(written: WrittenItem) -> PlanItem:
    identity = _text(written.id, "An item's id")
    models = tuple(check_model(model) for model in written.models)
    if not 1 <= len(models) <= MODELS_MAX or len(set(models)) < len(models):
        raise BadRequest(f"The item {identity!r} names 1 to {MODELS_MAX} models, each once.")
    if written.monthly_calls != UNLIMITED and not 1 <= written.monthly_calls <= CALLS_MAX:
        raise BadRequest(
            f"The item {identity!r} has 1 to {CALLS_MAX} calls a month, or -1 for no limit."
        )
    if len(written.icon) > ICON_CHARS_MAX or not written.icon.isprintable():
        raise BadRequest(f"The icon of {identity!r} is longer than {ICON_CHARS_MAX} characters.")
    name = _text(written.name or identity, "An item's name")
    return PlanItem(identity, name, models, written.monthly_calls, written.icon)


def _offered(
    number: int,
    levels: Mapping[int, WrittenLevel],
    own: Mapping[int, tuple[PlanItem, ...]],
    path: tuple[int, ...],
) -> tuple[PlanItem, ...]:
    """A level's items, its own first, then those it imports; the first of an id counts."""
    name = LEVEL_NAMES[number]
    if number in path:
        raise BadRequest(f"The level {name} imports itself, directly or by another one.")
    found = {item.id: item for item in own[number]}
    for text in levels[number].imports:
        other = level_of(text)
        if other not in levels:
            raise BadRequest(f"{name} imports {LEVEL_NAMES[other]}, which the plans do not name.")
        for item in _offered(other, levels, own, (*path, number)):
            found.setdefault(item.id, item)
    if not found:
        raise BadRequest(f"The level {name} has no items.")
    if len(found) > ITEMS_MAX:
        raise BadRequest(f"The level {name} has more than {ITEMS_MAX} items.")
    return tuple(found.values())


def _text(text: str, what: str) -> str:
    if not 1 <= len(text) <= NAME_CHARS_MAX or not text.isprintable() or text != text.strip():
        raise BadRequest(
            f"{what} has 1 to {NAME_CHARS_MAX} printable characters, and no blank at its ends."
        )
    return text
