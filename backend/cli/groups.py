"""Commands about groups: what their requests cost and which models they may call."""

from __future__ import annotations

from typing import Any

import click

from backend.catalog.checks import parse_models
from backend.catalog.price_text import format_ppm, parse_ppm
from backend.cli.output import Table, answer, json_option
from backend.cli.site import Site, with_site
from schemas.plans import LEVEL_NAMES, Group, OfferedGroup


@click.group()
def group() -> None:
    """Groups of users and keys. The subscription levels are groups too."""


@group.command("set")
@click.argument("name")
@click.option("--multiplier", default="1", show_default=True, help="Of every price, such as 0.8.")
@click.option("--models", default="", help="The only models it may call, as a,b; else every model.")
@json_option
def set_group(name: str, multiplier: str, models: str, as_json: bool) -> None:
    """Define the group NAME, or define it anew."""
    wanted = Group(parse_ppm(multiplier), parse_models(models))

    async def work(site: Site) -> int:
        return await site.catalog.define_group(name, wanted)

    version = with_site(work)
    data = _described(name, OfferedGroup(wanted, version))
    words = f"{name} pays {data['multiplier']} times the price (version {version})."
    answer(as_json, data, words)


@group.command("list")
@json_option
def list_groups(as_json: bool) -> None:
    """Show all groups; version 0: a subscription level that was not defined yet."""

    async def work(site: Site) -> dict[str, OfferedGroup]:
        return await site.catalog.list_groups()

    levels = {name: OfferedGroup(Group(), 0) for name in LEVEL_NAMES}
    groups = [_described(name, offered) for name, offered in (levels | with_site(work)).items()]
    rows = [
        (
            one["name"],
            one["multiplier"],
            ", ".join(one["models"]) or "every model",
            str(one["version"]),
        )
        for one in groups
    ]
    columns = ("name", "multiplier", "models", "version")
    answer(as_json, {"groups": groups}, Table(columns, rows))


def _described(name: str, offered: OfferedGroup) -> dict[str, Any]:
    return {
        "name": name,
        "multiplier": format_ppm(offered.group.multiplier_ppm),
        "models": offered.group.models,
        "version": offered.version,
    }
