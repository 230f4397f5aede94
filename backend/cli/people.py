"""Commands about people: users, invitations, grants, balances."""

from __future__ import annotations

from typing import Any

import click

from backend.cli.output import answer, json_option, secret_from
from backend.cli.places import place_data
from backend.cli.site import Site, with_site
from backend.folds import ALL_FOLDS
from backend.grants import GrantAsked
from backend.journal.view import load_states
from backend.ledger.account import Account
from schemas.errors import BadRequest
from schemas.ids import account_stream
from schemas.money import MicroPoints, MoneyError, format_points, parse_points

ACTOR = "cli"
USER = click.option("--user", "name", required=True, metavar="NAME", help="Whose.")
_PASSWORD_STDIN = click.option(
    "--password-stdin", is_flag=True, help="Read the password from stdin."
)


@click.group()
def user() -> None:
    """People who may sign in."""


@user.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May administer the site.")
@click.option("--invitation", metavar="CODE", help="Of the user who is rewarded for this one.")
@_PASSWORD_STDIN
@json_option
def create_user(
    name: str, admin: bool, invitation: str | None, password_stdin: bool, as_json: bool
) -> None:
    """Register NAME and open an account; the first administrator is granted 10 points."""
    password = _password(password_stdin)

    async def work(site: Site) -> dict[str, Any]:
        opened = await site.opening.open_person(
            name, password, administrator=admin, invitation=invitation
        )
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
def invitation() -> None:
    """Invitations to register, which reward who issued them."""


@invitation.command("issue")
@USER
@json_option
def issue_invitation(name: str, as_json: bool) -> None:
    """Make a new invitation. It is shown once; the one before ends with it."""

    async def work(site: Site) -> str:
        return await site.identity.issue_invitation(await site.identity.require(name))

    code = with_site(work)
    words = f"{code}\nThe invitation of {name}; it is not shown again."
    answer(as_json, {"invitation": code, "user": name}, words)


@click.command()
@USER
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
    amount_upt = points_from(points)

    async def work(site: Site) -> dict[str, Any]:
        person = await site.identity.require(name)
        granted = await site.grants.grant(
            GrantAsked(person, amount_upt, reason), actor=ACTOR, idempotency_key=idempotency_key
        )
        return {
            "user": name,
            "granted": format_points(granted.amount_upt),
            "repeated": granted.repeated,
            **await place_data(site, granted.stream, granted.version),
        }

    done = with_site(work)
    how = "had been granted before" if done["repeated"] else "granted"
    answer(
        as_json,
        done,
        f"{done['granted']} points {how} to {name} ({done['stream']} {done['version']}).",
    )


@click.command()
@USER
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


def points_from(text: str) -> MicroPoints:
    """Raises BadRequest."""
    try:
        return parse_points(text)
    except MoneyError as error:
        raise BadRequest(f"{error}.") from error


def _password(stdin: bool) -> str:
    return secret_from(stdin=stdin, option="--password-stdin", what="password")
