"""Commands about redemption and gift codes: made in batches, listed, voided."""

from __future__ import annotations

import csv
import sys
from typing import Any, Final

import click

from backend.cli.durations import parse_expiry
from backend.cli.freshness import is_stale
from backend.cli.output import Table, answer, json_option, secret_from, time_text
from backend.cli.people import ACTOR, points_from
from backend.cli.site import Site, with_site
from backend.ledger.code_list import LIST_MAX, CodeState, ListedCode, list_codes
from backend.ledger.codes import CODES_MAX, Codes, IssueAsked, Issued
from schemas.ids import PersonId
from schemas.ledger import CodeKind
from schemas.money import format_points

_STATES: Final = ("unused", "used", "expired", "void")


@click.group()
def code() -> None:
    """Codes that people turn into points, once each."""


@code.command("create")
@click.option("--kind", type=click.Choice([kind.value for kind in CodeKind]), required=True,
              help="redeem: a user may use many; gift: one of each type.")  # fmt: skip
@click.option("--points", required=True, help="What each is worth, such as 10 or 0.5.")
@click.option("--count", type=click.IntRange(1, CODES_MAX), required=True, help="How many.")
@click.option("--type", "type_", default="", metavar="TYPE", help="Of gift codes, such as spring.")
@click.option("--expires", metavar="TIME", help="30d, 12h, 2027-01-31 or an ISO 8601 time.")
@json_option
def create_codes(
    kind: str, points: str, count: int, type_: str, expires: str | None, as_json: bool
) -> None:
    """Make a batch of codes. They are shown once, as CSV or JSON, and kept nowhere in clear.

    The batch is named on stderr before the first code is made: where this is cut off, what was
    made and not shown is ended by `code void --batch`.
    """
    amount_upt = points_from(points)

    async def work(site: Site) -> tuple[Issued, int | None]:
        expires_us = None if expires is None else parse_expiry(expires, site.clock.now_us())
        codes = _codes(site)
        batch = codes.new_batch()
        click.echo(f"batch {batch}", err=True)
        asked = IssueAsked(CodeKind(kind), amount_upt, count, type_, expires_us)
        return await codes.issue(asked, actor=ACTOR, batch=batch), expires_us

    issued, expires_us = with_site(work)
    if as_json:
        answer(as_json, {"batch": issued.batch, "codes": issued.codes}, "")
        return
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("code", "points", "kind", "type", "expires", "batch"))
    until = "" if expires_us is None else time_text(expires_us)
    for text in issued.codes:
        rows.writerow((text, format_points(amount_upt), kind, type_, until, issued.batch))
    sys.stdout.flush()


@code.command("list")
@click.option("--batch", help="Only of this batch.")
@click.option("--state", type=click.Choice(_STATES), help="Only these.")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=100, show_default=True)
@click.option("--cursor", help="Go on after a page: its `next`.")
@json_option
def list_all_codes(
    batch: str | None, state: CodeState | None, limit: int, cursor: str | None, as_json: bool
) -> None:
    """Show codes, the newest first, and who used them; never their text."""

    async def work(site: Site) -> tuple[bool, list[dict[str, Any]], str | None]:
        stale = await is_stale(site, "codes", None)
        async with site.pool.connection() as connection:
            found = await list_codes(
                connection,
                site.clock.now_us(),
                batch=batch,
                state=state,
                cursor=cursor,
                limit=limit,
            )
        names: dict[int, str] = {}
        for person in {one.person for one in found if one.person is not None}:
            name = await site.identity.name_of(PersonId(person))
            names[person] = name or f"person {person} (forgotten)"
        following = found[-1].cursor if len(found) == limit else None
        return stale, [_described(one, names) for one in found], following

    stale, found, following = with_site(work)
    rows = [
        (
            one["hint"],
            one["points"],
            one["kind"],
            one["type"] or "-",
            one["batch"],
            one["state"],
            one["user"] or "-",
            one["redeemed_at"] or one["voided_at"] or "-",
            one["expires_at"] or "-",
        )
        for one in found
    ]
    columns = ("ends with", "points", "kind", "type", "batch", "state", "user", "when", "expires")
    data = {"codes": found, "next": following, "stale": stale}
    answer(as_json, data, Table(columns, rows, "There are no codes."))
    if stale:
        click.echo("The list may lack the newest events.", err=True)


@code.command("void")
@click.option("--batch", help="All codes of this batch that nobody has used.")
@click.option("--code-stdin", is_flag=True, help="The code on stdin.")
@json_option
def void_codes(batch: str | None, code_stdin: bool, as_json: bool) -> None:
    """End codes that nobody has used."""
    if (batch is None) != code_stdin:
        raise click.UsageError("Give either --batch or --code-stdin.")
    text = None
    if batch is None:
        text = secret_from(stdin=True, option="--code-stdin", what="code")

    async def work(site: Site) -> int:
        codes = _codes(site)
        if text is not None:
            await codes.void(text, ACTOR)
            return 1
        assert batch is not None, "one of both is given"
        return await codes.void_batch(batch, ACTOR)

    count = with_site(work)
    words = "The code is void." if text is not None else f"{count} codes are void."
    answer(as_json, {"voided": count}, words)


def _codes(site: Site) -> Codes:
    return Codes(site.writer, site.pool, site.secret, site.randomness, site.clock)


def _described(one: ListedCode, names: dict[int, str]) -> dict[str, Any]:
    return {
        "stream": one.stream,
        "batch": one.batch,
        "kind": one.kind,
        "type": one.type,
        "hint": one.hint,
        "points": format_points(one.amount_upt),
        "state": one.state,
        "issued_at": time_text(one.issued_us),
        "issued_by": one.actor,
        "expires_at": _time(one.expires_us),
        "user": None if one.person is None else names[one.person],
        "redeemed_at": _time(one.redeemed_us),
        "voided_at": _time(one.voided_us),
        "voided_by": one.voided_by,
    }


def _time(at_us: int | None) -> str | None:
    return None if at_us is None else time_text(at_us)
