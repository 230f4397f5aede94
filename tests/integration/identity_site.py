"""A process of a site for tests: writer, pool, services and views on a fresh database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import msgspec
import psycopg
from psycopg import sql

from backend.catalog.service import Catalog
from backend.catalog.view import CatalogView
from backend.folds import ALL_FOLDS
from backend.grants import Grants
from backend.identity.key_view import KeyView
from backend.identity.person_view import PersonView
from backend.identity.service import Identity
from backend.journal.view import StateView
from backend.journal.wake import LogWatch
from backend.journal.writer import Writer
from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.postgres import Pool, fetch_one, make_pool
from backend.kit.secrets import SiteSecret
from backend.opening import FirstPoints, Opening
from schemas.event import START, Position
from tests.conftest import Database

SECRET_TEXT = "q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+"
NOTHING_FIRST = FirstPoints()
NEWEST = """
SELECT epoch, xid::text::bigint, seq FROM event_log
ORDER BY epoch DESC, event_log.xid DESC, seq DESC LIMIT 1
"""
DROP_CONNECTIONS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %(name)s
"""


class Process(msgspec.Struct):
    writer: Writer
    pool: Pool
    secret: SiteSecret
    identity: Identity
    catalog: Catalog
    opening: Opening
    grants: Grants
    watch: LogWatch
    keys: KeyView
    people: PersonView
    channels: CatalogView
    view: StateView


@asynccontextmanager
async def process_of(
    database_url: str, secret: str = SECRET_TEXT, points: FirstPoints = NOTHING_FIRST
) -> AsyncGenerator[Process]:
    """A process with its own writer and views; the view is loaded but does not tail by itself."""
    clock, randomness, site_secret = SystemClock(), SystemRandomness(), SiteSecret(secret)
    watch = LogWatch(database_url)
    watch.start()
    writer = Writer(database_url, ALL_FOLDS, clock, randomness, watch)
    writer.start()
    keys, people, channels = KeyView(site_secret), PersonView(), CatalogView(site_secret, clock)
    async with make_pool(database_url, application="test", size_max=4) as pool:
        identity = Identity(writer, pool, site_secret, clock, randomness)
        catalog = Catalog(writer, pool, site_secret, randomness)
        view = StateView(pool, watch, ALL_FOLDS, clock, randomness, (keys, people, channels))
        await view.load()
        try:
            yield Process(
                writer=writer,
                pool=pool,
                secret=site_secret,
                identity=identity,
                catalog=catalog,
                opening=Opening(writer, identity, catalog, randomness, points),
                grants=Grants(writer, pool, identity, site_secret),
                watch=watch,
                keys=keys,
                people=people,
                channels=channels,
                view=view,
            )
        finally:
            await view.stop()
            await writer.stop()
            await watch.stop()


async def caught_up(site: Process) -> None:
    """The view has read all that is committed now.

    Readers wait for the oldest transaction of the whole server, so one pass may see less.
    """
    async with site.pool.connection() as connection:
        row = await fetch_one(connection, NEWEST)
    newest = START if row is None else Position(*row)
    async with asyncio.timeout(15.0):
        await site.view.refresh()
        while (site.view.place or START) < newest:
            await site.view.refresh()


@contextmanager
def outage(database: Database) -> Generator[None]:
    """The database refuses connections and drops those that are open, until the end."""
    with psycopg.connect(_beside(database), autocommit=True) as connection:
        name = sql.Identifier(database.name)
        connection.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(name))
        connection.execute(DROP_CONNECTIONS, {"name": database.name})
        try:
            yield
        finally:
            connection.execute(
                sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(name)
            )


async def until(happened: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Returns once it is so. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not happened():  # noqa: ASYNC110 - the view announces nothing
            await asyncio.sleep(0.01)


def _beside(database: Database) -> str:
    """The superuser's way into another database of the same server."""
    return urlsplit(database.superuser_url)._replace(path="/postgres").geturl()
