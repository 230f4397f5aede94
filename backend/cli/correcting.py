"""Corrections by an operator: a new entry that points at an old one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from backend.cli.output import answer, json_option
from backend.cli.people import ACTOR
from backend.cli.places import place_data
from backend.cli.site import Site, with_site
from backend.corrections import CorrectAsked, Corrections
from schemas.errors import BadRequest
from schemas.money import MoneyError, format_points, parse_points


@click.command()
@click.option("--user", "name", required=True, metavar="NAME", help="Whose.")
@click.option("--entry", required=True, type=click.UUID, metavar="EVENT_ID",
              help="The entry that is wrong: `event_id` in the statement.")  # fmt: skip
@click.option("--points", required=True, help="To add, or with a minus to take: a decimal number.")
@click.option("--reason", required=True, help="Why; kept sealed.")
@click.option("--idempotency-key", help="Asked twice under one key, it happens once.")
@json_option
def correct(
    name: str,
    entry: UUID,
    points: str,
    reason: str,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Correct an entry of a user's statement by a new one; never below zero."""
    try:
        amount_upt = parse_points(points.removeprefix("+"))
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error

    async def work(site: Site) -> dict[str, Any]:
        asked = CorrectAsked(await site.identity.require(name), entry, amount_upt, reason)
        corrections = Corrections(site.writer, site.pool, site.identity, site.secret)
        done = await corrections.correct(asked, actor=ACTOR, idempotency_key=idempotency_key)
        return {
            "user": name,
            "points": format_points(done.amount_upt),
            "corrects_event_id": str(done.entry),
            "event_id": str(done.event_id),
            "repeated": done.repeated,
            **await place_data(site, done.stream, done.version),
        }

    done = with_site(work)
    how = "had been corrected before" if done["repeated"] else "is corrected"
    answer(
        as_json,
        done,
        f"Entry {entry} of {name} {how} by {done['points']} points "
        f"({done['stream']} {done['version']}).",
    )
