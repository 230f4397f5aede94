"""Commands about limits: how often a key, a user, a group or a model may be used."""

from __future__ import annotations

from typing import Any, Final

import click
import msgspec

from backend.catalog.limit import GROUP, KEY, MODEL, NO_LIMITS, PERSON
from backend.catalog.limits import LimitBook, LimitEntry
from backend.cli.output import Table, answer, json_option
from backend.cli.site import Site, with_site
from backend.folds import ALL_FOLDS
from backend.journal.view import load_states
from schemas.catalog import Limits
from schemas.errors import NotFound
from schemas.ids import KeyId, PersonId, key_stream
from schemas.plans import LEVEL_NAMES

USER: Final = "user"
"""What the operator calls a person."""
_SCOPES: Final = (KEY, USER, GROUP, MODEL)
_AMOUNT: Final = click.IntRange(min=1)


@click.group()
def limit() -> None:
    """How often keys, users, groups and models may be used."""


@limit.command("set")
@click.option("--scope", type=click.Choice(_SCOPES), required=True, help="What is limited.")
@click.argument("name_or_id", metavar="NAME-or-ID")
@click.option("--requests-per-minute", type=_AMOUNT)
@click.option("--requests-per-day", type=_AMOUNT, help="Days are UTC.")
@click.option("--tokens-per-minute", type=_AMOUNT, help="Input and output together.")
@click.option("--tokens-per-day", type=_AMOUNT)
@click.option("--concurrency", type=_AMOUNT, help="Requests under way at once.")
@click.option("--none", "nothing", is_flag=True, help="Take all its limits away.")
@json_option
def set_limit(scope: str, name_or_id: str, nothing: bool, as_json: bool, **given: int) -> None:
    """Set all limits of a key (its number), a user, a group or a model (its name) at once.

    What is not given has no limit afterwards.
    """
    limits = Limits(**given)
    if (limits == NO_LIMITS) != nothing:
        raise click.UsageError("Give at least one limit, or --none alone.")

    async def work(site: Site) -> dict[str, Any]:
        identity = await _identity(site, scope, name_or_id)
        stored = PERSON if scope == USER else scope
        book = LimitBook(site.writer, site.pool)
        version = await book.set_limit(stored, identity, limits)
        shown = {"scope": scope, "id": identity, "name": name_or_id}
        return {**shown, "limits": msgspec.structs.asdict(limits), "version": version}

    done = with_site(work)
    words = f"{scope} {name_or_id}: {_words(limits)}."
    answer(as_json, done, words[:1].upper() + words[1:])


@limit.command("list")
@json_option
def list_limits(as_json: bool) -> None:
    """Show every limit that is set."""

    async def work(site: Site) -> list[dict[str, Any]]:
        entries = await LimitBook(site.writer, site.pool).list_limits()
        return [await _described(site, entry) for entry in entries]

    found = with_site(work)
    names = [name.replace("_", " ") for name in Limits.__struct_fields__]
    columns = ("scope", "id", "name", *names)
    rows = [
        (one["scope"], one["id"], one["name"], *(_cell(value) for value in one["limits"].values()))
        for one in found
    ]
    answer(as_json, {"limits": found}, Table(columns, rows, "No limits are set."))


async def _described(site: Site, entry: LimitEntry) -> dict[str, Any]:
    scope, name = entry.scope, entry.id
    if scope == PERSON:
        scope, name = USER, await site.identity.name_of(PersonId(int(entry.id))) or entry.id
    limits = msgspec.structs.asdict(entry.limits)
    return {
        "scope": scope, "id": entry.id, "name": name, "limits": limits, "version": entry.version,
    }  # fmt: skip


async def _identity(site: Site, scope: str, name_or_id: str) -> str:
    """What the limit's stream is named by. Raises NotFound where there is no such thing."""
    match scope:
        case "key":
            return str(await _key(site, name_or_id))
        case "user":
            return str(await site.identity.require(name_or_id))
        case "model":
            await _require_model(site, name_or_id)
            return name_or_id
        case _:
            await _require_group(site, name_or_id)
            return name_or_id


async def _key(site: Site, text: str) -> KeyId:
    number = KeyId(int(text)) if text.isascii() and text.isdigit() else None
    if number is None or number >= 2**63:
        raise NotFound("There is no such key; name it by its number.")
    stream = key_stream(number)
    async with site.pool.connection() as connection:
        if stream not in await load_states(connection, ALL_FOLDS, (stream,)):
            raise NotFound(f"There is no key {number}.")
    return number


async def _require_model(site: Site, model: str) -> None:
    if await site.catalog.newest_price(model) is not None:
        return
    channels = await site.catalog.list_channels()
    if not any(model in entry.state.settings.models for entry in channels):
        raise NotFound(f"There is no model {model!r}: it has no price, and no channel serves it.")


async def _require_group(site: Site, group: str) -> None:
    known = {*LEVEL_NAMES, *await site.catalog.list_groups()}
    if group not in known:
        raise NotFound(f"There is no group {group!r}; there are {', '.join(sorted(known))}.")


def _words(limits: Limits) -> str:
    said = [
        f"{value} {name.replace('_', ' ')}"
        for name, value in msgspec.structs.asdict(limits).items()
        if value is not None
    ]
    return ", ".join(said) or "no limit"


def _cell(value: int | None) -> str:
    return "-" if value is None else str(value)
