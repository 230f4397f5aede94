"""Starts the embedded servers a site needs, restarts those that die, stops them.

Must be used from the main thread (see children.py). Must not touch a part that has its URL set.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from backend.kit.clock import Randomness, SystemRandomness
from backend.kit.embedded.children import bound_log
from backend.kit.embedded.places import Place, choose_place, kept_place, programs_place
from backend.kit.embedded.postgres import APP, OWNER, EmbeddedPostgres, PortTaken
from backend.kit.embedded.programs import reachable_postgres, reachable_valkey
from backend.kit.embedded.state import (
    DataDirLock,
    PartsState,
    kept_or_free_port,
    new_state,
    read_state,
    write_state,
)
from backend.kit.embedded.valkey import EmbeddedValkey
from backend.kit.logs import get_logger
from backend.kit.private_files import make_data_dir, make_folder
from backend.kit.settings import Settings
from schemas.errors import SiteProblem

_WATCH_S = 0.2
_LOG_CHECK_S = 5.0
_RESTARTS_MAX = 10
_STEADY_S = 60.0
"""After so long without a fall a server's count of restarts begins anew."""
_BACKOFF_S, _BACKOFF_MAX_S = 0.2, 30.0
_PORT_TRIES = 3

_log = get_logger("embedded")


class Server(Protocol):
    """What the watcher needs of a part."""

    name: str

    @property
    def log(self) -> Path: ...
    @property
    def port(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    async def prepare(self) -> None: ...
    async def start(self) -> None: ...
    def move_to(self, port: int) -> None: ...
    def exited(self) -> int | None: ...
    async def stop(self) -> None: ...


class Parts(msgspec.Struct, frozen=True):
    """Where the parts are. Holds passwords."""

    database_url: str
    database_owner_url: str
    """Equal to `database_url` if the operator gave no owner."""
    redis_url: str
    embedded: tuple[str, ...]
    """Which we run ourselves: of "postgres", "valkey"."""
    place: Path | None
    """Where the embedded parts' data lie; None if none is embedded."""

    def __repr__(self) -> str:
        return f"Parts(embedded={self.embedded}, place={self.place})"


class RunningParts:
    """The parts of a site, watched. End with `stop`."""

    def __init__(self, parts: Parts, servers: Sequence[Server], lock: DataDirLock | None) -> None:
        self.parts = parts
        self._servers = servers
        self._lock = lock
        self._health = {"postgres": "outside", "valkey": "outside"}
        self._health |= {server.name: "up" for server in servers}
        self._watchers = [
            asyncio.create_task(self._watch(server), name=f"watch-{server.name}")
            for server in servers
        ]

    def health(self) -> dict[str, str]:
        """Per part: `up`, `outside` (not ours), `restarting`, or `down: why`."""
        health = dict(self._health)
        for server, watcher in zip(self._servers, self._watchers, strict=True):
            if watcher.done() and not health[server.name].startswith("down"):
                health[server.name] = "down: it is not watched any more"
        return health

    def pids(self) -> dict[str, int]:
        """Process ids of the embedded servers that run now."""
        return {server.name: server.pid for server in self._servers if server.pid is not None}

    async def stop(self) -> None:
        """Stop the servers and free the data folder. Safe to call again."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        try:
            await _stop_all(self._servers)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    async def _watch(self, server: Server) -> None:
        """Restart `server` whenever it falls; give up after too many falls in a row."""
        falls, started, log_checked = 0, time.monotonic(), time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_S)
            now = time.monotonic()
            if now - log_checked > _LOG_CHECK_S:
                log_checked = now
                bound_log(server.log)
            code = server.exited()
            if code is None:
                continue
            _log.error("embedded_server_ended", server=server.name, code=code)
            falls = 0 if now - started > _STEADY_S else falls
            falls = await self._restart(server, falls)
            if falls > _RESTARTS_MAX:
                return
            started = time.monotonic()

    async def _restart(self, server: Server, falls: int) -> int:
        """Try until it is up or the tries are used up; returns the falls so far."""
        self._health[server.name] = "restarting"
        why = "it ended again and again"
        while (falls := falls + 1) <= _RESTARTS_MAX:
            if falls > 1:
                pause_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** (falls - 2))
                jitter = random.uniform(0.75, 1.25)  # noqa: S311 - not a secret
                await asyncio.sleep(pause_s * jitter)
            try:
                # Always on the same port: clients hold its URL.
                await server.start()
            except (SiteProblem, OSError) as problem:
                why = str(problem)
                self._health[server.name] = f"restarting: {why}"
                _log.error("embedded_server_restart_failed", server=server.name, why=why)
                continue
            self._health[server.name] = "up"
            _log.warning("embedded_server_restarted", server=server.name, falls=falls)
            return falls
        self._health[server.name] = f"down: {why}"
        _log.error("embedded_server_given_up", server=server.name, falls=falls, why=why)
        return falls


@asynccontextmanager
async def running_parts(
    settings: Settings, randomness: Randomness | None = None
) -> AsyncGenerator[RunningParts]:
    """`start_parts`, and `stop` at the end."""
    running = await start_parts(settings, randomness)
    try:
        yield running
    finally:
        await running.stop()


def outside_parts(settings: Settings) -> RunningParts:
    """The parts that the URLs name; starts nothing. DATABASE_URL must be set, REDIS_URL may be."""
    assert settings.database.url, "the caller has looked"
    return RunningParts(_parts(settings, None, None, None), (), None)


async def start_parts(settings: Settings, randomness: Randomness | None = None) -> RunningParts:
    """Start each part whose URL is not set, and wait until all are ready.

    Raises SiteProblem: one sentence for whatever is wrong. Nothing is left running then.
    """
    if settings.database.url and settings.redis.url:
        return outside_parts(settings)
    make_data_dir(settings.data_dir)
    lock, running = DataDirLock(settings.data_dir), None
    try:
        running = await _start_embedded(settings, randomness or SystemRandomness(), lock)
        return running
    finally:
        if running is None:
            lock.release()


async def _start_embedded(
    settings: Settings, randomness: Randomness, lock: DataDirLock
) -> RunningParts:
    state = read_state(settings.data_dir)
    if state is None:
        place = choose_place(settings)
        state = new_state(randomness, str(place.folder) if place.outside else "")
    else:
        place = kept_place(settings, state)
    # Kept before anything is made with these passwords.
    write_state(settings.data_dir, state)
    if place.outside:
        _log.warning("embedded_data_outside", place=str(place.folder), user=place.account.name)
    postgres, valkey = _servers(settings, place, state)
    servers: list[Server] = [server for server in (postgres, valkey) if server is not None]
    await _start_all(servers)
    running = RunningParts(_parts(settings, place, postgres, valkey), servers, lock)
    try:
        _keep(settings, state, postgres, valkey)
    except SiteProblem:
        await running.stop()
        raise
    return running


def _servers(
    settings: Settings, place: Place, state: PartsState
) -> tuple[EmbeddedPostgres | None, EmbeddedValkey | None]:
    logs = settings.data_dir / "logs"
    make_folder(logs, 0o700)
    make_place = partial(programs_place, settings, place.account)
    postgres = valkey = None
    if not settings.database.url:
        program = reachable_postgres(place.account, make_place)
        log = logs / "postgres.log"
        postgres = EmbeddedPostgres(program, place.folder, place.account, log, state)
    if not settings.redis.url:
        program = reachable_valkey(place.account, make_place)
        valkey = EmbeddedValkey(program, place.folder, place.account, logs / "valkey.log", state)
    return postgres, valkey


async def _start_all(servers: Sequence[Server]) -> None:
    """Start all at once; if one fails, or we are cancelled, none is left running."""
    started = False
    try:
        results = await asyncio.gather(
            *(_start_one(server) for server in servers), return_exceptions=True
        )
        for problem in results:
            if problem is not None:
                raise problem
        started = True
    finally:
        if not started:
            await _stop_all(servers)


async def _start_one(server: Server) -> None:
    bound_log(server.log)
    await server.prepare()
    # Only now: until `prepare` an orphan of an earlier run may hold the kept port.
    server.move_to(kept_or_free_port(server.port))
    for _ in range(_PORT_TRIES - 1):
        try:
            return await server.start()
        except PortTaken:
            # Free a moment ago, taken since: before the first client nothing holds us to it.
            server.move_to(kept_or_free_port(0))
    return await server.start()


async def _stop_all(servers: Sequence[Server]) -> None:
    await asyncio.gather(*(server.stop() for server in servers))


def _keep(
    settings: Settings,
    state: PartsState,
    postgres: EmbeddedPostgres | None,
    valkey: EmbeddedValkey | None,
) -> None:
    """Write down what the start changed: ports that moved, a database that now exists."""
    kept = msgspec.structs.replace(
        state,
        postgres_port=postgres.port if postgres else state.postgres_port,
        valkey_port=valkey.port if valkey else state.valkey_port,
        postgres_made=state.postgres_made or postgres is not None,
    )
    if kept != state:
        write_state(settings.data_dir, kept)


def _parts(
    settings: Settings,
    place: Place | None,
    postgres: EmbeddedPostgres | None,
    valkey: EmbeddedValkey | None,
) -> Parts:
    database, redis = settings.database, settings.redis
    url = postgres.url(APP) if postgres else database.url or ""
    owner_url = postgres.url(OWNER) if postgres else database.owner_url or url
    return Parts(
        database_url=url,
        database_owner_url=owner_url,
        redis_url=valkey.url() if valkey else redis.url or "",
        embedded=tuple(server.name for server in (postgres, valkey) if server is not None),
        place=place.folder if place else None,
    )
