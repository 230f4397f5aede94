"""Commands about people: users, keys, grants, balances."""

from __future__ import annotations

from typing import Any

import click

from backend.catalog.checks import check_model, parse_models
from backend.cli.durations import parse_expiry
from backend.cli.output import Table, answer, json_option, secret_from, time_text, yes_no
from backend.cli.site import Site, with_site
from backend.folds import ALL_FOLDS
from backend.grants import GrantAsked
from backend.identity.service import KeyAsked
from backend.journal.view import load_states
from backend.ledger.account import Account
from schemas.errors import BadRequest, NotFound
from schemas.ids import KeyId, account_stream
from schemas.money import MoneyError, format_points, parse_points

ACTOR = "cli"
_USER = click.option("--user", "name", required=True, metavar="NAME", help="Whose.")
_PASSWORD_STDIN = click.option(
    "--password-stdin", is_flag=True, help="Read the password from stdin."
)


@click.group()
def user() -> None:
    """People who may sign in."""


@user.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May administer the site.")
@_PASSWORD_STDIN
@json_option
def create_user(name: str, admin: bool, password_stdin: bool, as_json: bool) -> None:
    """Register NAME and open an account; the first administrator is granted 10 points."""
    password = _password(password_stdin)

    async def work(site: Site) -> dict[str, Any]:
        opened = await site.opening.open_person(name, password, administrator=admin)
        return {
            "id": opened.person,
            "user": name,
            "administrator": admin,
            "granted": format_points(opened.granted_upt),
        }

    made = with_site(work)
    words = f"{name} is registered as number {made['id']}."
    if made["granted"] != "0":
        words += f" {made['granted']} points were granted."
    answer(as_json, made, words)


@user.command("password")
@click.argument("name")
@_PASSWORD_STDIN
@json_option
def set_password(name: str, password_stdin: bool, as_json: bool) -> None:
    """Give NAME a new password."""
    password = _password(password_stdin)

    async def work(site: Site) -> None:
        await site.identity.set_password(await site.identity.require(name), password)

    with_site(work)
    answer(as_json, {"user": name, "changed": True}, f"{name} has a new password.")


@user.command("check")
@click.argument("name")
@_PASSWORD_STDIN
@json_option
@click.pass_context
def check_password(
    context: click.Context,
    name: str,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Exit 0 if this is the password of NAME, else 1."""
    password = _password(password_stdin)

    async def work(site: Site) -> bool:
        return await site.identity.check_password(name, password) is not None

    right = with_site(work)
    answer(as_json, {"ok": right}, "The password is right." if right else "The password is wrong.")
    context.exit(0 if right else 1)


@click.group()
def key() -> None:
    """API keys."""


@key.command("create")
@_USER
@click.option("--name", "label", default="", help="What you call the key.")
@click.option("--models", default="", help="The only models it may use, as a,b; else every model.")
@click.option("--expires", help="30d, 12h, 2027-01-31 or an ISO 8601 time; else never.")
@json_option
def create_key(name: str, label: str, models: str, expires: str | None, as_json: bool) -> None:
    """Make a key. It is shown once and kept nowhere."""
    allowed = tuple(check_model(model) for model in parse_models(models))

    async def work(site: Site) -> dict[str, Any]:
        person = await site.identity.require(name)
        expires_us = None if expires is None else parse_expiry(expires, site.clock.now_us())
        new = await site.identity.create_key(person, KeyAsked(label, allowed, expires_us))
        return {
            "key": new.text,
            "id": new.key,
            "user": name,
            "name": label,
            "models": allowed,
            "expires": None if expires_us is None else time_text(expires_us),
        }

    made = with_site(work)
    answer(as_json, made, f"{made['key']}\nKey {made['id']} of {name}; it is not shown again.")


@key.command("list")
@_USER
@json_option
def list_keys(name: str, as_json: bool) -> None:
    """Show the keys of a user by number and last characters."""

    async def work(site: Site) -> list[dict[str, Any]]:
        person = await site.identity.require(name)
        return [
            {
                "id": number,
                "name": state.name,
                "hint": state.hint,
                "models": state.models,
                "expires": None if state.expires_us is None else time_text(state.expires_us),
                "revoked": state.revoked,
            }
            async for number, state in site.identity.list_keys(person)
        ]

    keys = with_site(work)
    rows = [
        (
            str(one["id"]),
            one["name"],
            one["hint"],
            ", ".join(one["models"]) or "every model",
            one["expires"] or "never",
            yes_no(one["revoked"]),
        )
        for one in keys
    ]
    columns = ("id", "name", "key", "models", "expires", "revoked")
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


@click.command()
@_USER
@click.option("--points", required=True, help="How many, such as 10 or 0.5.")
@click.option("--reason", required=True, help="Why; kept sealed beside the grant.")
@click.option("--idempotency-key", help="The same key and arguments grant once, however often run.")
@json_option
def grant(
    name: str,
    points: str,
    reason: str,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Give points to a user."""
    try:
        amount_upt = parse_points(points)
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error

    async def work(site: Site) -> dict[str, Any]:
        person = await site.identity.require(name)
        granted = await site.grants.grant(
            GrantAsked(person, amount_upt, reason), actor=ACTOR, idempotency_key=idempotency_key
        )
        return {
            "user": name,
            "granted": format_points(granted.amount_upt),
            "stream": granted.stream,
            "version": granted.version,
            "repeated": granted.repeated,
        }

    done = with_site(work)
    how = "had been granted before" if done["repeated"] else "granted"
    answer(
        as_json,
        done,
        f"{done['granted']} points {how} to {name} ({done['stream']} {done['version']}).",
    )


@click.command()
@_USER
@json_option
def balance(name: str, as_json: bool) -> None:
    """What a user has, as the next decision will see it."""

    async def work(site: Site) -> Account:
        stream = account_stream(await site.identity.require(name))
        async with site.pool.connection() as connection:
            found = await load_states(connection, ALL_FOLDS, (stream,))
        state: Account = found[stream][1] if stream in found else Account()
        return state

    account = with_site(work)
    posted, held, available = (
        format_points(amount)
        for amount in (account.posted_upt, account.held_upt, account.available_upt)
    )
    answer(
        as_json,
        {"posted": posted, "held": held, "available": available},
        f"{available} points available ({posted} posted, {held} held).",
    )


def _password(stdin: bool) -> str:
    return secret_from(stdin=stdin, option="--password-stdin", what="password")
