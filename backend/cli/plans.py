"""Commands about plans and subscriptions: what the levels offer, and buying one for a user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from backend.catalog.plan_text import (
    PLANS_BYTES_MAX,
    discounts_data,
    level_of,
    plan_data,
    read_plans,
)
from backend.catalog.plans import DefinedPlans, Plans
from backend.cli.output import Table, answer, json_option, time_text
from backend.cli.people import ACTOR, USER
from backend.cli.places import place_data
from backend.cli.site import Site, with_site
from backend.ledger.subscriptions import Subscribed, Subscriptions
from schemas.errors import BadRequest, NotFound
from schemas.money import format_points
from schemas.plans import LEVEL_NAMES, TERMS_MONTHS, UNLIMITED, OfferedPlan


@click.group()
def plan() -> None:
    """What subscribers pay, and which calls they have for it."""


@plan.command("set")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def set_plans(file: Path, as_json: bool) -> None:
    """Define the levels that FILE (TOML or JSON) names; see docs/billing.md for its shape."""
    plans = read_plans(_read(file))

    async def work(site: Site) -> DefinedPlans:
        return await Plans(site.writer, site.pool).define(plans)

    done = with_site(work)
    changed = [LEVEL_NAMES[level] for level in done.changed]
    words = f"Changed: {', '.join(changed)}." if changed else "The plans are so already."
    answer(as_json, {"changed": changed, "levels": _levels(done.plans)}, words)


@plan.command("show")
@json_option
def show_plans(as_json: bool) -> None:
    """Show what every level offers now."""

    async def work(site: Site) -> dict[int, OfferedPlan]:
        return await Plans(site.writer, site.pool).list_plans()

    plans = with_site(work)
    rows = [
        (
            f"{LEVEL_NAMES[level]} ({level})",
            offered.plan.name,
            format_points(offered.plan.month_price_upt),
            "on sale" if offered.plan.enabled else "not on sale",
            ", ".join(f"{item.id}: {_calls(item.monthly_calls)}" for item in offered.plan.items),
            str(offered.ref.version),
        )
        for level, offered in plans.items()
    ]
    columns = ("level", "name", "points a month", "sale", "calls a month", "version")
    data = {"levels": _levels(plans)}
    answer(as_json, data, Table(columns, rows, "No plans are defined."))


@click.command()
@USER
@click.option("--level", required=True, help="1 or basic, 2 or standard, 3 or pro.")
@click.option("--months", type=int, required=True, help=f"{', '.join(map(str, TERMS_MONTHS))}.")
@click.option("--idempotency-key", help="The same key and arguments buy once, however often run.")
@json_option
def subscribe(
    name: str, level: str, months: int, idempotency_key: str | None, as_json: bool
) -> None:
    """Buy, renew or change the subscription of a user, with the user's own points."""
    number = level_of(level)

    async def work(site: Site) -> tuple[Subscribed, dict[str, Any]]:
        person = await site.identity.require(name)
        offered = (await Plans(site.writer, site.pool).list_plans()).get(number)
        if offered is None:
            raise NotFound(f"The level {LEVEL_NAMES[number]} is not defined; see `plan set`.")
        subscriptions = Subscriptions(site.writer, site.pool, site.secret, site.clock)
        done = await subscriptions.subscribe(
            person, offered, months, actor=ACTOR, idempotency_key=idempotency_key
        )
        return done, await place_data(site, done.stream, done.version)

    done, place = with_site(work)
    data = {
        "user": name,
        "kind": done.kind,
        "level": done.level,
        "months": done.months,
        "price": format_points(done.price_upt),
        "credit": format_points(done.credit_upt),
        "due": format_points(done.due_upt),
        "until": time_text(done.until_us),
        "available": format_points(done.available_upt),
        "repeated": done.repeated,
        **place,
    }
    how = f"had been {done.kind} before" if done.repeated else f"is {done.kind}"
    words = (
        f"{LEVEL_NAMES[done.level]} {how} for {data['due']} points until {data['until']}; "
        f"{data['available']} are left."
    )
    answer(as_json, data, words[:1].upper() + words[1:])


def _levels(plans: dict[int, OfferedPlan]) -> dict[str, Any]:
    return {
        LEVEL_NAMES[level]: {
            "level": level,
            "version": offered.ref.version,
            **plan_data(offered.plan),
            "relay": offered.plan.relay,
            "time_zone": offered.plan.time_zone,
            "discounts": discounts_data(offered.plan),
        }
        for level, offered in plans.items()
    }


def _calls(count: int) -> str:
    return "unlimited" if count == UNLIMITED else str(count)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(PLANS_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {str(path)!r}.") from error
    except OSError as error:
        raise BadRequest(f"{str(path)!r} cannot be read: {error.strerror}.") from error
