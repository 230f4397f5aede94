"""Commands about channels."""

from __future__ import annotations

from typing import Any

import click

from backend.catalog.checks import OPENAI, TYPES, parse_mapping, parse_models
from backend.catalog.service import ChannelState
from backend.cli.channel_probe import probe_channel
from backend.cli.output import Table, answer, json_option, secret_from, yes_no
from backend.cli.site import Site, with_site
from backend.opening import remove_trial_file
from schemas.catalog import ChannelSettings
from schemas.errors import BadRequest

_CHANNEL = click.argument("name_or_id", metavar="CHANNEL")


@click.group()
def channel() -> None:
    """Upstream providers that calls can go to."""


@channel.command("add")
@click.option("--name", required=True, help="What you call it.")
@click.option("--type", "kind", type=click.Choice(TYPES), default=OPENAI, show_default=True)
@click.option("--base-url", default="", help="With /v1 or what the provider has instead.")
@click.option("--secret-stdin", is_flag=True, help="Read the provider's key from stdin.")
@click.option("--no-secret", is_flag=True, help="The provider wants no key.")
@click.option("--models", required=True, help="The models it serves, as a,b.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher is tried first.")
@click.option("--weight", type=int, default=1, show_default=True, help="Share within a priority.")
@click.option("--map", "mapping", multiple=True, metavar="FROM>TO", help="A model's upstream name.")
@click.option("--api-version", help="Azure's API version.")
@json_option
def add(
    name: str,
    kind: str,
    base_url: str,
    secret_stdin: bool,
    no_secret: bool,
    models: str,
    priority: int,
    weight: int,
    mapping: tuple[str, ...],
    api_version: str | None,
    as_json: bool,
) -> None:
    """Add a channel. The first real one ends the demo model and the trial account's key."""
    settings = ChannelSettings(
        name=name,
        type=kind,
        base_url=base_url,
        models=parse_models(models),
        priority=priority,
        weight=weight,
        mapping=parse_mapping(mapping),
        api_version=api_version,
    )
    secret = ""
    if kind == OPENAI and not no_secret:
        secret = secret_from(stdin=secret_stdin, option="--secret-stdin", what="secret")

    async def work(site: Site) -> dict[str, Any]:
        added = await site.opening.add_channel(settings, secret)
        if added.ended_trial:
            remove_trial_file(site.settings.data_dir)
        return {"id": added.channel, "name": name, "ended_trial": added.ended_trial}

    made = with_site(work)
    words = f"Channel {made['id']} ({name}) is added."
    if made["ended_trial"]:
        words += " The demo model and the trial key have ended."
    answer(as_json, made, words)


@channel.command("list")
@json_option
def list_channels(as_json: bool) -> None:
    """Show all channels, disabled ones too. Secrets are not shown."""

    async def work(site: Site) -> list[ChannelState]:
        return await site.catalog.list_channels()

    channels = with_site(work)
    rows = [
        (
            str(entry.channel),
            entry.state.settings.name,
            entry.state.settings.type,
            entry.state.settings.base_url,
            ", ".join(entry.state.settings.models),
            str(entry.state.settings.priority),
            str(entry.state.settings.weight),
            yes_no(entry.state.enabled),
        )
        for entry in channels
    ]
    columns = ("id", "name", "type", "base URL", "models", "priority", "weight", "enabled")
    data = {"channels": [_described(entry) for entry in channels]}
    answer(as_json, data, Table(columns, rows, "There are no channels."))


@channel.command("enable")
@_CHANNEL
@json_option
def enable(name_or_id: str, as_json: bool) -> None:
    """Let calls go to CHANNEL (its name or number) again."""

    async def work(site: Site) -> dict[str, Any]:
        entry = await site.catalog.find_channel(name_or_id)
        await site.catalog.enable_channel(entry.channel)
        return {"id": entry.channel, "name": entry.state.settings.name, "enabled": True}

    done = with_site(work)
    answer(as_json, done, f"Channel {done['id']} ({done['name']}) is enabled.")


@channel.command("disable")
@_CHANNEL
@click.option("--reason", default="by the operator", show_default=True)
@json_option
def disable(name_or_id: str, reason: str, as_json: bool) -> None:
    """Send no more calls to CHANNEL (its name or number)."""
    if len(reason) > 200:
        raise BadRequest("A reason has at most 200 characters.")

    async def work(site: Site) -> dict[str, Any]:
        entry = await site.catalog.find_channel(name_or_id)
        await site.catalog.disable_channel(entry.channel, reason)
        return {"id": entry.channel, "name": entry.state.settings.name, "enabled": False}

    done = with_site(work)
    answer(as_json, done, f"Channel {done['id']} ({done['name']}) is disabled.")


@channel.command("test")
@_CHANNEL
@click.option("--model", help="Also have this model answer one word; the provider may charge it.")
@json_option
@click.pass_context
def try_channel(
    context: click.Context,
    name_or_id: str,
    model: str | None,
    as_json: bool,
) -> None:
    """Ask the provider for its models, and say what is wrong if it does not answer."""

    async def work(site: Site) -> tuple[ChannelState, str]:
        entry = await site.catalog.find_channel(name_or_id)
        return entry, site.catalog.secret_of(entry)

    entry, secret = with_site(work)
    found = probe_channel(entry.state.settings, secret, model)
    data = {"id": entry.channel, "name": entry.state.settings.name, **found.as_data()}
    words = f"Channel {entry.channel} ({entry.state.settings.name}): {found.sentence}"
    answer(as_json, data, words)
    context.exit(0 if found.ok else 1)


def _described(entry: ChannelState) -> dict[str, Any]:
    settings = entry.state.settings
    return {
        "id": entry.channel,
        "name": settings.name,
        "type": settings.type,
        "base_url": settings.base_url,
        "models": settings.models,
        "priority": settings.priority,
        "weight": settings.weight,
        "mapping": dict(settings.mapping),
        "api_version": settings.api_version,
        "has_secret": bool(entry.state.secret_sealed),
        "enabled": entry.state.enabled,
        "reason": entry.state.reason,
    }
