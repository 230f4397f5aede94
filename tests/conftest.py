"""Real parts for tests: a PostgreSQL server per session, a fresh migrated database per test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psycopg
import pytest
from psycopg import sql

from backend.journal.migrate import migrate
from tests.servers import postgres_server
from tests.valkey import ValkeyServer, valkey_server


class Database(msgspec.Struct, frozen=True):
    """One migrated database: the application's URL, the owner's, and a superuser's for
    tampering.
    """

    app_url: str
    owner_url: str
    superuser_url: str
    name: str


RECKLESS: Final = (
    "ALTER SYSTEM SET fsync = off",
    "ALTER SYSTEM SET full_page_writes = off",
    "SELECT pg_reload_conf()",
)
"""No test cuts the power: what is committed survives any kill without the disk's word for it."""


def _with_database(url: str, name: str, user: str | None = None, password: str = "") -> str:
    parts = urlsplit(url)
    host = f"{parts.hostname}:{parts.port}"
    credentials = f"{parts.username}:{parts.password}" if user is None else f"{user}:{password}"
    return urlunsplit((parts.scheme, f"{credentials}@{host}", f"/{name}", parts.query, ""))


class Server:
    """Creates databases on one server; the first is migrated and the others are copies of it."""

    def __init__(self, superuser_url: str) -> None:
        self._url = superuser_url
        self._password = secrets.token_hex(8)
        self._suffix = secrets.token_hex(4)
        self._count = 0
        with psycopg.connect(self._url, autocommit=True) as connection:
            for setting in RECKLESS:
                connection.execute(setting)
            for role in (self._owner, self._app):
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(self._password)
                    )
                )
        self._template = self._create("template_of", None)
        database = self._urls(self._template)
        migrate(database.owner_url, database.app_url)

    @property
    def _owner(self) -> str:
        return f"owner_{self._suffix}"

    @property
    def _app(self) -> str:
        return f"app_{self._suffix}"

    def fresh(self) -> Database:
        self._count += 1
        return self._urls(self._create(f"test_{self._count}", self._template))

    def empty(self) -> Database:
        """A database without our schema."""
        self._count += 1
        return self._urls(self._create(f"empty_{self._count}", None))

    def drop(self, database: Database) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                    sql.Identifier(database.name)
                )
            )

    def close(self) -> None:
        self.drop(self._urls(self._template))

    def _create(self, name: str, template: str | None) -> str:
        name = f"{name}_{self._suffix}"
        statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(
            sql.Identifier(name), sql.Identifier(self._owner)
        )
        if template is not None:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(template), sql.Identifier(self._owner)
            )
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement)
        return name

    def _urls(self, name: str) -> Database:
        return Database(
            _with_database(self._url, name, self._app, self._password),
            _with_database(self._url, name, self._owner, self._password),
            _with_database(self._url, name),
            name,
        )


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One PostgreSQL for the session; SUANPAN_TEST_SUPERUSER_URL names one that runs already."""
    given = os.environ.get("SUANPAN_TEST_SUPERUSER_URL")
    if given:
        server = Server(given)
        yield server
        server.close()
        return
    with postgres_server() as url:
        yield Server(url)


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A fresh migrated database."""
    made = server.fresh()
    yield made
    server.drop(made)


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """A database without our schema, for migrations."""
    made = server.empty()
    yield made
    server.drop(made)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyServer]:
    """One Valkey for the session; tests that stop it start one of their own."""
    with valkey_server() as running:
        yield running


@pytest.fixture
def valkey(shared_valkey: ValkeyServer) -> ValkeyServer:
    """An empty Valkey."""
    shared_valkey.wipe()
    return shared_valkey
