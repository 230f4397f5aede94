"""Commands about forgetting: a user, and old copies of the keys that seal personal data."""

from __future__ import annotations

import sys
from typing import Any

import click

from backend.cli.output import answer, json_option
from backend.cli.people import ACTOR, user
from backend.cli.site import Site, with_site
from backend.folds import ALL_FOLDS
from backend.forgetting import Forgetting
from backend.identity.key_epochs import Rewrapped
from backend.journal.view import load_states
from backend.ledger.account import Account
from schemas.ids import PersonId, account_stream
from schemas.money import format_points


@user.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
def delete_user(name: str, yes: bool, as_json: bool) -> None:
    """Forget NAME for ever: personal data becomes unreadable, keys end, the books stay.

    Points that are left are not paid out: they stay in the books, on an account nobody can use.
    """
    if not yes:
        _confirm(name)

    async def work(site: Site) -> dict[str, Any]:
        person = await site.identity.require(name)
        forgetting = Forgetting(site.writer, site.pool, site.identity, site.settings.data_dir)
        done = await forgetting.forget(person, ACTOR)
        return {
            "id": done.person,
            "user": name,
            "forgotten": True,
            "keys_revoked": done.keys_revoked,
            "points_kept": format_points((await _account(site, person)).posted_upt),
        }

    done = with_site(work)
    words = f"{name} is forgotten; the account is number {done['id']}."
    if done["points_kept"] != "0":
        words += f" {done['points_kept']} points stay on it."
    answer(as_json, done, words)


@click.group("keys")
def data_keys() -> None:
    """Keys that personal data is sealed with (API keys: `suanpan key`)."""


@data_keys.command("rewrap")
@json_option
@click.pass_context
def rewrap(context: click.Context, as_json: bool) -> None:
    """Wrap every data key anew, so that older copies of them open no more. Exit 1 if a key does
    not open."""

    async def work(site: Site) -> Rewrapped:
        return await site.identity.data_keys.epochs.rewrap()

    done = with_site(work)
    words = f"{done.keys} keys are wrapped anew; {done.epochs_destroyed} older epochs are gone."
    if done.unreadable:
        words += f" {done.unreadable} keys do not open with SECRET and were left as they are."
    answer(as_json, done, words)
    context.exit(1 if done.unreadable else 0)


async def _account(site: Site, person: PersonId) -> Account:
    stream = account_stream(person)
    async with site.pool.connection() as connection:
        found = await load_states(connection, ALL_FOLDS, (stream,))
    state: Account = found[stream][1] if stream in found else Account()
    return state


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("Forgetting cannot be undone: give --yes.")
    click.confirm(f"Forget {name} for ever?", abort=True, err=True)
