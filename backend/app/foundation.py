"""What every role stands on: parts, pool, writer, views. Opened in order, closed in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec
import psycopg
import structlog

from backend.catalog.service import Catalog
from backend.folds import ALL_FOLDS
from backend.identity.service import Identity
from backend.journal.migrate import is_current, migrate
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.embedded import RunningParts, outside_parts, running_parts
from backend.kit.postgres import Pool, make_pool
from backend.kit.private_files import make_data_dir
from backend.kit.runtime_file import read_runtime
from backend.kit.secrets import SiteSecret, load_or_make_secret
from backend.kit.settings import DatabaseSettings, RedisSettings, Settings
from backend.kit.valkey import Valkey
from backend.opening import Opening, first_points
from schemas.errors import SiteProblem

POOL_SIZE_MAX: Final = 8

_log = structlog.get_logger("app")


class Foundation(msgspec.Struct, frozen=True):
    """The shared parts of one process."""

    settings: Settings
    parts: RunningParts
    secret: SiteSecret
    clock: SystemClock
    randomness: SystemRandomness
    pool: Pool
    watch: LogWatch
    writer: Writer
    identity: Identity
    catalog: Catalog
    opening: Opening
    valkey: Valkey
    """Connects when it is first used; nothing about money rests on it."""


@asynccontextmanager
async def site_of_its_own(settings: Settings) -> AsyncGenerator[Foundation]:
    """`serve`: starts each part whose URL is not set, and brings the schema up to date.

    Raises SiteProblem.
    """
    make_data_dir(settings.data_dir)
    async with running_parts(settings) as parts:
        urls = parts.parts
        applied = await asyncio.to_thread(migrate, urls.database_owner_url, urls.database_url)
        if applied:
            _log.info("migrated", files=len(applied))
        async with _founded(settings, parts) as foundation:
            yield foundation


@asynccontextmanager
async def part_of_a_site(settings: Settings) -> AsyncGenerator[Foundation]:
    """The other roles: start no part, and refuse a database that is behind. Raises SiteProblem."""
    settings = _beside_a_running_site(settings)
    make_data_dir(settings.data_dir)
    parts = outside_parts(settings)
    await asyncio.to_thread(_require_current, parts.parts.database_url)
    async with _founded(settings, parts) as foundation:
        yield foundation


@asynccontextmanager
async def _founded(settings: Settings, parts: RunningParts) -> AsyncGenerator[Foundation]:
    clock, randomness, urls = SystemClock(), SystemRandomness(), parts.parts
    async with AsyncExitStack() as stack:
        secret = load_or_make_secret(settings, randomness)
        pool = make_pool(urls.database_url, application="suanpan", size_max=POOL_SIZE_MAX)
        await stack.enter_async_context(pool)
        watch = LogWatch(urls.database_url)
        watch.start()
        stack.push_async_callback(watch.stop)
        writer = Writer(urls.database_url, ALL_FOLDS, clock, randomness, watch)
        writer.start()
        stack.push_async_callback(writer.stop)
        identity = Identity(writer, pool, secret, clock, randomness)
        await identity.data_keys.check_secret()
        catalog = Catalog(writer, pool, secret, randomness)
        opening = Opening(writer, identity, catalog, randomness, first_points(settings))
        valkey = Valkey(urls.redis_url, valkey_prefix(secret))
        stack.push_async_callback(valkey.close)
        yield Foundation(
            settings,
            parts,
            secret,
            clock,
            randomness,
            pool,
            watch,
            writer,
            identity,
            catalog,
            opening,
            valkey,
        )


def valkey_prefix(secret: SiteSecret) -> str:
    """Sites that share a Valkey server never meet there."""
    return f"suanpan:{secret.hmac('valkey prefix', b'')[:6].hex()}:"


def _beside_a_running_site(settings: Settings) -> Settings:
    """The settings with the URLs of the site that runs on this data folder, where none are given.

    Raises SiteProblem where there is neither.
    """
    if settings.database.url:
        return settings
    runtime = read_runtime(settings.data_dir)
    if runtime is None:
        raise SiteProblem(
            "This role needs DATABASE_URL (and REDIS_URL), or a site running on the same data "
            "folder: set them, or start `suanpan serve` first."
        )
    return msgspec.structs.replace(
        settings,
        database=DatabaseSettings(runtime.database_url, runtime.database_owner_url),
        redis=RedisSettings(settings.redis.url or runtime.redis_url),
    )


def _require_current(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True, connect_timeout=5) as connection:
        if not is_current(connection):
            raise SiteProblem("The database is behind this version: run `suanpan migrate` first.")
