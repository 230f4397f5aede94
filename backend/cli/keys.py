"""Commands about API keys: made, listed, revoked."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from backend.catalog.checks import check_model, parse_models
from backend.cli.durations import parse_expiry
from backend.cli.output import Table, answer, json_option, secret_from, time_text, yes_no
from backend.cli.people import ACTOR, USER, points_from
from backend.cli.site import Site, with_site
from backend.identity.key import Key
from backend.identity.key_asked import KeyAsked, parse_scopes
from schemas.errors import NotFound
from schemas.identity import KeyCreated, Reset
from schemas.ids import KeyId
from schemas.money import MicroPoints, format_points


@click.group()
def key() -> None:
    """API keys."""


@key.command("create")
@USER
@click.option("--name", "label", default="", help="What you call the key.")
@click.option("--models", default="", help="The only models it may use, as a,b; else every model.")
@click.option("--expires", help="30d, 12h, 2027-01-31 or an ISO 8601 time; else never.")
@click.option("--quota", metavar="POINTS", help="What it may spend; else all that the user has.")
@click.option(
    "--reset",
    type=click.Choice([reset.value for reset in Reset]),
    default=Reset.NEVER.value,
    help="When the quota begins anew, in UTC; weeks begin on Monday.",
)
@click.option(
    "--addresses",
    default="",
    metavar="CIDR,…",
    help="The only networks it may be used from; else everywhere.",
)
@click.option("--concurrency", type=int, help="Requests under way at once; else no limit.")
@click.option("--group", default="", metavar="NAME", help="Bound to a group; else the user's own.")
@click.option(
    "--scopes",
    default="relay,wallet",
    show_default=True,
    help="What it opens; `admin` for administrators alone.",
)
@json_option
def create_key(
    name: str,
    label: str,
    models: str,
    expires: str | None,
    quota: str | None,
    reset: str,
    addresses: str,
    concurrency: int | None,
    group: str,
    scopes: str,
    as_json: bool,
) -> None:
    """Make a key. It is shown once and kept nowhere."""
    asked = KeyAsked(
        name=label,
        models=tuple(check_model(model) for model in parse_models(models)),
        scopes=parse_scopes(scopes),
        quota_upt=None if quota is None else points_from(quota),
        reset=Reset(reset),
        addresses=tuple(part for part in addresses.split(",") if part.strip()),
        concurrency=concurrency,
        group=group,
    )
    made = with_site(lambda site: _created(site, name, asked, expires))
    answer(as_json, made, f"{made['key']}\nKey {made['id']} of {name}; it is not shown again.")


async def _created(site: Site, name: str, asked: KeyAsked, expires: str | None) -> dict[str, Any]:
    person = await site.identity.require(name)
    if expires is not None:
        expires_us = parse_expiry(expires, site.clock.now_us())
        asked = msgspec.structs.replace(asked, expires_us=expires_us)
    new = await site.identity.create_key(person, asked)
    return {"key": new.text, "id": new.key, "user": name, "name": new.created.name} | _rules(
        new.created
    )


@key.command("list")
@USER
@json_option
def list_keys(name: str, as_json: bool) -> None:
    """Show the keys of a user by number and last characters."""

    async def work(site: Site) -> list[dict[str, Any]]:
        person = await site.identity.require(name)
        return [
            {"id": number, "name": state.name, "hint": state.hint}
            | _rules(state)
            | {"revoked": state.revoked}
            async for number, state in site.identity.list_keys(person)
        ]

    keys = with_site(work)
    columns = (
        "id", "name", "key", "scopes", "models", "expires", "quota", "addresses", "at once",
        "group", "revoked",
    )  # fmt: skip
    rows = [_row(one) for one in keys]
    answer(as_json, {"keys": keys}, Table(columns, rows, f"{name} has no keys."))


@key.command("revoke")
@click.argument("key_or_id", required=False)
@click.option("--key-stdin", is_flag=True, help="Read the key, or its number, from stdin.")
@json_option
def revoke_key(key_or_id: str | None, key_stdin: bool, as_json: bool) -> None:
    """End a key, named by its number or its text. It stops within a second."""
    if (key_or_id is None) != key_stdin:
        raise click.UsageError("Name the key, or give --key-stdin.")
    sought = secret_from(stdin=True, option="--key-stdin", what="key") if key_stdin else key_or_id
    assert sought is not None, "one of the two was given"

    async def work(site: Site) -> dict[str, Any]:
        number = KeyId(int(sought)) if sought.isdecimal() else await site.identity.find_key(sought)
        if number is None or number >= 2**63:
            raise NotFound("There is no such key.")
        changed = await site.identity.revoke_key(number, ACTOR)
        return {"id": number, "revoked": True, "changed": changed}

    done = with_site(work)
    how = "is revoked" if done["changed"] else "was revoked before"
    answer(as_json, done, f"Key {done['id']} {how}.")


def _rules(key: Key | KeyCreated) -> dict[str, Any]:
    """What a key may do, as `--json` shows it."""
    return {
        "models": key.models,
        "expires": None if key.expires_us is None else time_text(key.expires_us),
        "scopes": key.scopes,
        "quota": None if key.quota_upt is None else format_points(MicroPoints(key.quota_upt)),
        "reset": key.reset,
        "addresses": key.addresses,
        "concurrency": key.concurrency,
        "group": key.group or None,
    }


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    quota = "-" if one["quota"] is None else one["quota"]
    return (
        str(one["id"]),
        one["name"],
        one["hint"],
        ", ".join(one["scopes"]),
        ", ".join(one["models"]) or "every model",
        one["expires"] or "never",
        quota if one["reset"] == Reset.NEVER else f"{quota} {one['reset']}",
        ", ".join(one["addresses"]) or "everywhere",
        "-" if one["concurrency"] is None else str(one["concurrency"]),
        one["group"] or "-",
        yes_no(one["revoked"]),
    )
