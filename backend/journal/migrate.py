"""Brings a database to this version's schema: numbered SQL files, each once, in order, checked.

Runs as the owner; grants the application its rights. Never edits a file that has been released.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any, Final, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict

from backend.kit.postgres import conninfo
from schemas.errors import SiteProblem

OLDEST_SERVER: Final = 170_000
"""Identity columns on partitioned tables came with 17."""
LOCK_KEY: Final = 0x5375616E_70616E
_MAKE_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS migrations (
        name text PRIMARY KEY, sha256 text NOT NULL, at timestamptz NOT NULL DEFAULT now())
"""
_LIST: Final = "SELECT name, sha256 FROM migrations ORDER BY name"
_RECORD: Final = "INSERT INTO migrations (name, sha256) VALUES (%(name)s, %(sha256)s)"
_GRANT: Final = """
    DO $$ BEGIN
        EXECUTE format('GRANT SELECT ON migrations TO %I', current_setting('suanpan.app_role'));
    END $$
"""
_TRY_LOCK: Final = "SELECT pg_advisory_lock(%(key)s)"
_SET_ROLE: Final = "SELECT set_config('suanpan.app_role', %(role)s, false)"
_HAS_TABLE: Final = "SELECT to_regclass('public.migrations') IS NOT NULL"


def migration_files() -> list[tuple[str, str]]:
    """(name, SQL) of every migration in order."""
    folder = resources.files("backend.journal") / "migrations"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [(file.name, file.read_text("utf-8")) for file in files]


def migrate(owner_url: str, app_url: str) -> list[str]:
    """Applies what is missing and returns the names applied; blocking, for start-up and the CLI.

    Raises SiteProblem where an applied file differs from ours, the database is newer than us, or
    the server too old.
    """
    app_role = conninfo_to_dict(app_url).get("user") or conninfo_to_dict(owner_url).get("user")
    with psycopg.connect(
        conninfo(owner_url, application="suanpan migrate"), autocommit=True
    ) as connection:
        check_version(connection.info.server_version)
        connection.execute("SET statement_timeout = '10min'")
        connection.execute(_SET_ROLE, {"role": str(app_role or _current_user(connection))})
        connection.execute(_TRY_LOCK, {"key": LOCK_KEY})
        connection.execute(_MAKE_TABLE)
        connection.execute(_GRANT)
        return _apply_missing(connection)


def check_version(number: int) -> None:
    """Raises SiteProblem for a server that cannot hold the schema; `number` as in 180004."""
    if number < OLDEST_SERVER:
        raise SiteProblem(
            f"DATABASE_URL is PostgreSQL {number // 10_000}: Suanpan needs 17 or newer (it is "
            "tested with 18), or no DATABASE_URL to run its own."
        )


def is_current(connection: psycopg.Connection[Any]) -> bool:
    """Whether every migration of this version has been applied."""
    row = connection.execute(_HAS_TABLE).fetchone()
    if row is None or not row[0]:
        return False
    applied = {name for name, _ in connection.execute(_LIST).fetchall()}
    return all(name in applied for name, _ in migration_files())


def _current_user(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT current_user").fetchone()
    return "" if row is None else str(row[0])


def _apply_missing(connection: psycopg.Connection[Any]) -> list[str]:
    applied = dict(cast("list[tuple[str, str]]", connection.execute(_LIST).fetchall()))
    files = migration_files()
    unknown = sorted(set(applied) - {name for name, _ in files})
    if unknown:
        raise SiteProblem(
            f"the database was migrated by a newer version ({unknown[-1]}): upgrade Suanpan"
        )
    done: list[str] = []
    for name, sql in files:
        digest = hashlib.sha256(sql.encode()).hexdigest()
        if name not in applied:
            with connection.transaction():
                connection.execute(sql.encode())
                connection.execute(_RECORD, {"name": name, "sha256": digest})
            done.append(name)
        elif applied[name] != digest:
            raise SiteProblem(f"migration {name} was applied in another form; restore the original")
    return done
