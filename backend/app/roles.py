"""The roles of the one command. `serve` is all of them; the others are the scaled shape's parts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
import structlog
import uvloop
from prometheus_client import CollectorRegistry

from backend.app.consumers import add_projector, add_publisher
from backend.app.exporting import add_jobs
from backend.app.foundation import Foundation, part_of_a_site, site_of_its_own
from backend.app.health import HealthCheck
from backend.app.relay import make_sweeper, relay_of
from backend.app.seals import add_seals, run_witness
from backend.app.serving import address_of, bound_socket, serve, stop_on_signals
from backend.forgetting import Forgetting
from backend.http.site import Site, make_probes
from backend.journal.reader import site_of
from backend.kit.logs import configure_logs
from backend.kit.runtime_file import Runtime, remove_runtime, write_runtime
from backend.kit.settings import Settings
from backend.kit.tasks import died
from backend.ledger.points import Points
from backend.ledger.spool import Spool
from backend.ledger.subscriptions import Subscriptions
from backend.opening import TRIAL_FILE, TRIAL_NAME
from schemas.errors import SiteProblem
from workers.expiring import Expirer
from workers.forgetting import Forgetter

ROLES: Final = ("serve", "api", "worker", "projector", "publisher", "witness")

Say = Callable[[str], None]

_log = structlog.get_logger("app")


def _print(line: str) -> None:
    click.echo(line)


def run(role: str, settings: Settings, say: Say = _print) -> None:
    """Runs a role until SIGTERM or SIGINT. Blocking; raises SiteProblem."""
    configure_logs(settings.log, sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_start(role, settings, say))
    if died():
        raise SiteProblem(f"stopped after a defect in {', '.join(died())}; the log has the trace")


async def _start(role: str, settings: Settings, say: Say) -> None:
    match role:
        case "serve":
            await _serve(settings, say)
        case "api":
            await _api(settings, say)
        case "worker":
            await _behind_probes(role, settings, say, _add_worker)
        case "projector":
            await _behind_probes(role, settings, say, add_projector)
        case "publisher":
            await _behind_probes(role, settings, say, add_publisher)
        case "witness":
            await run_witness(settings, say)
        case _:
            raise AssertionError(f"no such role: {role}")


async def _serve(settings: Settings, say: Say) -> None:
    """Everything in one process: migrates, opens an empty site, answers, projects, publishes,
    seals.
    """
    stop = stop_on_signals()
    bound = bound_socket(settings.host, settings.port)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(site_of_its_own(settings))
        health = HealthCheck(base, "serve")
        # First: what Kafka has and the table lacks must close the site before anything is written.
        await add_publisher(base, health, registry, stack)
        if settings.demo.enabled:
            await _open_if_empty(base)
        await add_projector(base, health, registry, stack)
        await add_seals(base, health, stack)
        _add_forgetter(base, health, stack)
        add_jobs(base, health, stack)
        _add_expirer(base, health, stack)
        site = Site("serve", health, registry)
        relay = await stack.enter_async_context(relay_of(base, site, registry))
        health.add_warnings(relay.rates.warnings)
        _publish_runtime(base, address_of(bound), stack)
        _greet(base, address_of(bound), say)
        await serve(relay.app, bound, stop, settings.http)


async def _open_if_empty(base: Foundation) -> None:
    async with base.pool.connection() as connection:
        _, _, read_only_reason = await site_of(connection)
    if read_only_reason is None:
        await base.opening.open_empty_site(base.settings.data_dir)


async def _api(settings: Settings, say: Say) -> None:
    """Answers people and clients; the log's readers run elsewhere."""
    stop = stop_on_signals()
    bound = bound_socket(settings.host, settings.port)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(part_of_a_site(settings))
        health = HealthCheck(base, "api")
        site = Site("api", health, registry)
        relay = await stack.enter_async_context(relay_of(base, site, registry))
        health.add_warnings(relay.rates.warnings)
        say(f"suanpan api is ready at {address_of(bound)}")
        await serve(relay.app, bound, stop, settings.http)


Add = Callable[[Foundation, HealthCheck, CollectorRegistry, AsyncExitStack], Awaitable[None]]


async def _behind_probes(role: str, settings: Settings, say: Say, add: Add) -> None:
    """A role that answers nothing but health and metrics."""
    stop = stop_on_signals()
    bound = bound_socket(settings.host, settings.port)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(part_of_a_site(settings))
        health = HealthCheck(base, role)
        await add(base, health, registry, stack)
        say(f"suanpan {role} is ready at {address_of(bound)}")
        await serve(make_probes(Site(role, health, registry)), bound, stop, settings.http)


async def _add_worker(
    base: Foundation, health: HealthCheck, registry: CollectorRegistry, stack: AsyncExitStack
) -> None:
    """Sweeps requests whose process died, finishes forgettings, notes what has expired; exports
    and audits."""
    _add_forgetter(base, health, stack)
    add_jobs(base, health, stack)
    _add_expirer(base, health, stack)
    points = Points(base.writer, base.pool)
    sweeper = make_sweeper(base, points, Spool(base.settings.data_dir / "spool"))
    sweeper.start()
    stack.push_async_callback(sweeper.stop)
    health.add("sweeper", lambda: {"swept": sweeper.swept})


def _add_forgetter(base: Foundation, health: HealthCheck, stack: AsyncExitStack) -> None:
    forgetting = Forgetting(base.writer, base.pool, base.identity, base.settings.data_dir)
    forgetter = Forgetter(forgetting, base.identity.data_keys.epochs, base.randomness)
    forgetter.start()
    stack.push_async_callback(forgetter.stop)
    health.add("forgetter", lambda: {"finished": forgetter.finished})


def _add_expirer(base: Foundation, health: HealthCheck, stack: AsyncExitStack) -> None:
    subscriptions = Subscriptions(base.writer, base.pool, base.secret, base.clock)
    expirer = Expirer(subscriptions, base.clock, base.randomness)
    expirer.start()
    stack.push_async_callback(expirer.stop)
    health.add("expirer", lambda: {"expired": expirer.expired})


def _publish_runtime(base: Foundation, url: str, stack: AsyncExitStack) -> None:
    parts, data_dir = base.parts.parts, base.settings.data_dir
    runtime = Runtime(
        os.getpid(), url, parts.database_url, parts.database_owner_url, parts.redis_url
    )
    write_runtime(data_dir, runtime)
    stack.callback(remove_runtime, data_dir, os.getpid())


def _greet(base: Foundation, url: str, say: Say) -> None:
    """What a person who has just started the site wants to see."""
    parts, data_dir = base.parts.parts, base.settings.data_dir
    kafka = base.settings.kafka.bootstrap_servers
    say(f"Suanpan is running at {url}")
    say(f"  data      {data_dir}")
    if parts.place is not None and parts.place != data_dir:
        say(f"  servers   {parts.place}")
    say(f"  embedded  {', '.join(parts.embedded) or 'nothing'}")
    say(f"  kafka     {kafka or 'not configured: the log is in Postgres alone'}")
    if (data_dir / TRIAL_FILE).exists():
        say("Try it:")
        say(_curl(url, str(data_dir / TRIAL_FILE)))
        say("and see what it cost:")
        say(f"  SUANPAN_DATA_DIR='{data_dir}' {_command()} statement --user {TRIAL_NAME}")


def _command() -> str:
    """How this command was called, for a shell in the same folder."""
    started = Path(sys.argv[0])
    return str(started) if started.name == "suanpan" else "suanpan"


def _curl(url: str, key_file: str) -> str:
    body = '{"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}'
    return (
        f"  curl {url}/v1/chat/completions -H \"Authorization: Bearer $(cat '{key_file}')\""
        f" -H 'Content-Type: application/json' -d '{body}'"
    )
