"""Commands that run the site's roles, bring its database up to date, and ask how it is."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import httpx
import msgspec

from backend.cli.output import answer, json_option
from backend.cli.site import located, settings_from_environment
from backend.journal.migrate import migrate as apply_migrations
from backend.kit.runtime_file import read_runtime
from backend.kit.settings import Settings, load_settings

HEALTH_TIMEOUT_S: Final = 10.0
_HELP: Final = {
    "serve": "Run the whole site in one process, with embedded servers where none are named.",
    "api": "Answer people and clients.",
    "worker": "Do slow work that events ask for.",
    "projector": "Fold events into the tables that are read.",
    "publisher": "Carry events to Kafka.",
    "witness": "Verify Kafka's events and emit seals.",
}


def _role_command(role: str) -> click.Command:
    @click.command(role, help=_HELP[role])
    @click.option("--host", help="Address to listen on.")
    @click.option("--port", type=int, help="Port to listen on.")
    @click.option("--data-dir", type=click.Path(path_type=Path), help="The site's data folder.")
    @json_option
    def command(
        host: str | None,
        port: int | None,
        data_dir: Path | None,
        as_json: bool,
    ) -> None:
        from backend.app import run

        settings = load_settings(os.environ, host=host, port=port, data_dir=data_dir)
        run(role, settings, _sayer(role, settings) if as_json else click.echo)

    return command


def _sayer(role: str, settings: Settings) -> Callable[[str], None]:
    """Announces readiness as one object on stdout; the words for people go to stderr."""
    announced = False

    def say(text: str) -> None:
        nonlocal announced
        if not announced:
            announced = True
            runtime = read_runtime(settings.data_dir)
            url = runtime.url if runtime is not None and runtime.pid == os.getpid() else None
            answer(True, {"role": role, "pid": os.getpid(), "url": url}, "")
        click.echo(text, err=True)

    return say


ROLE_COMMANDS: Final = tuple(_role_command(role) for role in _HELP)


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database to this version's schema, as its owner."""
    settings = settings_from_environment()

    async def work() -> list[str]:
        # Embedded parts are migrated as they start: what was missing is applied by then.
        async with located(settings) as database:
            return await asyncio.to_thread(apply_migrations, database.owner_url, database.url)

    applied = asyncio.run(work())
    words = f"Applied {', '.join(applied)}." if applied else "The database is up to date."
    answer(as_json, {"applied": applied}, words)


@click.command()
@json_option
@click.pass_context
def health(context: click.Context, as_json: bool) -> None:
    """Ask the running site whether it is ready, or say what is not running."""
    found = _ask(settings_from_environment())
    ready = found.get("status") == "ready"
    if as_json:
        answer(True, found, "")
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    context.exit(0 if ready else 1)


def _ask(settings: Settings) -> dict[str, Any]:
    runtime = read_runtime(settings.data_dir)
    if runtime is None and not (settings.database.url or settings.kafka.bootstrap_servers):
        return _down(f"no site runs with the data folder {settings.data_dir}")
    url = _own_address(settings) if runtime is None else runtime.url
    try:
        found = httpx.get(f"{url}/health", timeout=HEALTH_TIMEOUT_S, trust_env=False)
        return msgspec.json.decode(found.content, type=dict[str, Any])
    except httpx.HTTPError as error:
        return _down(f"nothing answers at {url} ({type(error).__name__})")
    except msgspec.DecodeError:
        return _down(f"{url} answers, but is not this site")


def _own_address(settings: Settings) -> str:
    """Where a single role of the scaled shape listens in this container."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _down(why: str) -> dict[str, Any]:
    sys.stderr.write(f"suanpan: {why}\n")
    return {"status": "not running", "why": [why]}
