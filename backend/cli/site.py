"""Finds the site that a command is about, and gives its services while the command runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from backend.catalog.service import Catalog
from backend.folds import ALL_FOLDS
from backend.grants import Grants
from backend.identity.service import Identity
from backend.journal.migrate import migrate
from backend.journal.wake import NOTIFY, LogWatch
from backend.journal.writer import Writer
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.logs import configure_logs
from backend.kit.postgres import ConnectionLost, Pool, connect, fetch_one, make_pool
from backend.kit.runtime_file import read_runtime
from backend.kit.secrets import SiteSecret, load_or_make_secret
from backend.kit.settings import LogSettings, RedisSettings, Settings, load_settings
from backend.opening import Opening, first_points
from schemas.errors import SiteProblem

if TYPE_CHECKING:
    from backend.kit.embedded import RunningParts

HAS_TABLES: Final = "SELECT to_regclass('public.site') IS NOT NULL"
LOCK_WAIT_S: Final = 60.0
_LOCK_EVERY_S: Final = 0.2
_POOL_SIZE: Final = 4

_T = TypeVar("_T")


class Database(msgspec.Struct, frozen=True):
    """Where the site's log is. Holds passwords."""

    url: str
    owner_url: str
    runs: bool
    """A site runs on this data folder and keeps its read tables current."""

    def __repr__(self) -> str:
        return "Database(…)"


class Site(msgspec.Struct, frozen=True):
    """Everything a command may use; closed when the command ends."""

    settings: Settings
    database: Database
    pool: Pool
    clock: SystemClock
    randomness: SystemRandomness
    secret: SiteSecret
    writer: Writer
    identity: Identity
    catalog: Catalog
    opening: Opening
    grants: Grants

    @property
    def runs(self) -> bool:
        return self.database.runs


def settings_from_environment(**overrides: object) -> Settings:
    """Settings of this process; warnings and errors go to stderr. Raises SiteProblem."""
    settings = load_settings(os.environ, **overrides)
    configure_logs(LogSettings(level="warning", format=settings.log.format))
    return settings


def with_site(work: Callable[[Site], Awaitable[_T]]) -> _T:
    """Runs `work` on the site and closes it. Raises SuanpanError, psycopg errors."""

    async def run() -> _T:
        async with open_site(settings_from_environment()) as site:
            return await work(site)

    return asyncio.run(run())


@asynccontextmanager
async def open_site(settings: Settings) -> AsyncGenerator[Site]:
    """The site of these settings, migrated and with the right secret. Raises SiteProblem."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(located(settings))
        await _check_reachable(database)
        randomness, clock = SystemRandomness(), SystemClock()
        pool = make_pool(database.url, application="suanpan cli", size_max=_POOL_SIZE)
        await stack.enter_async_context(pool)
        secret = load_or_make_secret(settings, randomness)
        # It is announced once at the end: waking readers is all it could do for us.
        writer = Writer(database.url, ALL_FOLDS, clock, randomness, LogWatch(database.url))
        writer.start()
        stack.push_async_callback(_finish, writer, pool)
        identity = Identity(writer, pool, secret, clock, randomness)
        await identity.data_keys.check_secret()
        catalog = Catalog(writer, pool, secret, randomness)
        yield Site(
            settings=settings,
            database=database,
            pool=pool,
            clock=clock,
            randomness=randomness,
            secret=secret,
            writer=writer,
            identity=identity,
            catalog=catalog,
            opening=Opening(writer, identity, catalog, randomness, first_points(settings)),
            grants=Grants(writer, pool, identity, secret),
        )


@asynccontextmanager
async def located(settings: Settings) -> AsyncGenerator[Database]:
    """The running site's database, else the one that settings name, else our own for a while.

    Parts that are started here are migrated, and stopped at the end. Raises SiteProblem.
    """
    database = _running_or_named(settings)
    running = None
    if database is None:
        database, running = await _started_or_found(settings)
    try:
        yield database
    finally:
        if running is not None:
            await running.stop()


async def _started_or_found(settings: Settings) -> tuple[Database, RunningParts | None]:
    """Our own parts, or those of a site that came up while we waited for the data folder.

    Waits while another command, or a site that is starting or stopping, has the folder. After
    `LOCK_WAIT_S` the lock's own sentence says who has it.
    """
    from backend.kit.embedded.state import DataDirInUse
    from backend.kit.embedded.supervisor import start_parts

    # A command needs no Valkey, and a part that has its URL is not started.
    database_only = msgspec.structs.replace(settings, redis=RedisSettings(url="unused"))
    deadline_s = asyncio.get_running_loop().time() + LOCK_WAIT_S
    while True:
        try:
            running = await start_parts(database_only)
            break
        except DataDirInUse:
            if asyncio.get_running_loop().time() > deadline_s:
                raise
        await asyncio.sleep(_LOCK_EVERY_S)
        database = _running_or_named(settings)
        if database is not None:
            return database, None
    parts, migrated = running.parts, False
    try:
        await asyncio.to_thread(migrate, parts.database_owner_url, parts.database_url)
        migrated = True
    finally:
        if not migrated:
            await running.stop()
    return Database(parts.database_url, parts.database_owner_url, runs=False), running


def _running_or_named(settings: Settings) -> Database | None:
    runtime = read_runtime(settings.data_dir)
    if runtime is not None:
        return Database(runtime.database_url, runtime.database_owner_url, runs=True)
    if settings.database.url:
        owner_url = settings.database.owner_url or settings.database.url
        return Database(settings.database.url, owner_url, runs=False)
    return None


async def _check_reachable(database: Database) -> None:
    try:
        connection = await connect(database.url, application="suanpan cli")
    except ConnectionLost as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise SiteProblem(f"PostgreSQL cannot be reached: {first_line}") from error
    async with connection:
        row = await fetch_one(connection, HAS_TABLES)
    if row is None or not row[0]:
        raise SiteProblem("The database has no Suanpan tables yet: run `suanpan migrate`.")


async def _finish(writer: Writer, pool: Pool) -> None:
    """Commits what is queued and wakes the site's readers: a revoked key stops at once."""
    await writer.stop()
    if writer.commands_landed:
        async with pool.connection() as connection:
            await connection.execute(NOTIFY)
