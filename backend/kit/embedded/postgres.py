"""The embedded PostgreSQL: its data folder, its process, its two roles.

Must not know tables: migrations belong to whoever holds the owner's URL.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import psycopg
from psycopg import sql

from backend.kit.embedded.accounts import Account, give
from backend.kit.embedded.children import (
    HAS_PROC,
    PID_FILES,
    ChildFailed,
    end,
    end_leftovers,
    failed,
    first_int,
    log_since,
    log_size,
    servers_in,
    spawn,
    wait_exit,
)
from backend.kit.embedded.programs import POSTGRES_MAJOR
from backend.kit.embedded.state import PartsState
from backend.kit.private_files import sync_folder, unwritable, write_private
from schemas.errors import SiteProblem

DATABASE = "suanpan"
SUPERUSER = "suanpan_super"
OWNER = "suanpan_owner"
APP = "suanpan_app"

_INITDB_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 120.0
"""Generous: after a crash the server replays up to `max_wal_size` before it is ready."""
_CONNECT_TIMEOUT_S = 10
_POLL_S = 0.01
_SOCKET_PATH_BYTES_MAX = 100
"""sockaddr_un holds 107 bytes; the server adds `/.s.PGSQL.<port>`."""

# Small memory, full durability: fsync and synchronous_commit keep their default, on.
_OPTIONS: dict[str, str] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "effective_cache_size": "256MB",
    "wal_buffers": "4MB",
    "min_wal_size": "64MB",
    "max_wal_size": "512MB",
    "wal_compression": "pglz",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "io_method": "sync",  # no I/O worker processes
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",  # no launcher process
    "autovacuum_max_workers": "1",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "60",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    # Statements may carry what must not be logged.
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
}

_MISSING_ROLES = """
    SELECT name FROM unnest(%(names)s::text[]) AS name
    WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name)
"""
_DATABASE_EXISTS = "SELECT 1 FROM pg_database WHERE datname = %(name)s"
_CREATE_ROLE = sql.SQL(
    "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {verifier}"
)
_CREATE_DATABASE = sql.SQL("CREATE DATABASE {database} OWNER {owner}")
_CLOSE_DATABASE = sql.SQL("REVOKE ALL ON DATABASE {database} FROM PUBLIC")
_OPEN_DATABASE = sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {app}")


class PortTaken(SiteProblem):
    """Another program took the chosen port first."""


class EmbeddedPostgres:
    """One PostgreSQL server under `<place>/postgres`. Not started when made."""

    name = "postgres"

    def __init__(
        self, programs: Path, place: Path, account: Account, log: Path, state: PartsState
    ) -> None:
        self._bin = programs / "bin"
        self._home = place / "postgres"
        self._data = (self._home / "data").absolute()
        self._account = account
        self._log = log
        self._state = state
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self._log

    @property
    def port(self) -> int:
        return self._state.postgres_port

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def url(self, role: str) -> str:
        """Connection URL of `OWNER`, `APP` or `SUPERUSER`, password inside."""
        password = {
            OWNER: self._state.owner_password,
            APP: self._state.app_password,
            SUPERUSER: self._state.superuser_password,
        }[role]
        database = "postgres" if role == SUPERUSER else DATABASE
        return f"postgresql://{role}:{password}@127.0.0.1:{self._state.postgres_port}/{database}"

    async def prepare(self) -> None:
        """End orphans on the data folder; make it if there is none; refuse another major's.

        Raises SiteProblem: made before but missing, other version, initdb's failure.
        """
        await self._clear()
        version = self._data / "PG_VERSION"
        if version.exists():
            found = version.read_text().strip()
            if found != POSTGRES_MAJOR:
                raise SiteProblem(
                    f"The database in {self._data} was made by PostgreSQL {found}; this suanpan "
                    f"embeds {POSTGRES_MAJOR}. Dump it with PostgreSQL {found}, move the folder "
                    "away, start again and load the dump; or set DATABASE_URL."
                )
            return
        if self._state.postgres_made:
            raise SiteProblem(
                f"The site's database was in {self._data}, but it is gone. Put the folder back. "
                "To begin an empty site, choose another folder with SUANPAN_DATA_DIR."
            )
        await self._initialize()

    async def _initialize(self) -> None:
        fresh, password_file = self._home / "data.new", self._home / "password"
        try:
            give(self._account, self._home)
            await end_leftovers(fresh, "postgres", None, signal.SIGTERM, 2.0)
            shutil.rmtree(fresh, ignore_errors=True)
            write_private(password_file, self._state.superuser_password.encode())
            if self._account.drops:
                # A real file of the server's user: /dev/fd is not readable after the uid drop.
                shutil.chown(password_file, self._account.uid, self._account.gid)
            await self._run_initdb(fresh, password_file)
            fresh.rename(self._data)
            sync_folder(self._home)
        except OSError as error:
            raise unwritable(self._home, error) from error
        finally:
            password_file.unlink(missing_ok=True)

    async def _run_initdb(self, fresh: Path, password_file: Path) -> None:
        before = log_size(self._log)
        command = [
            self._bin / "initdb", "-D", fresh, "-U", SUPERUSER, "--pwfile", password_file,
            "--auth=scram-sha-256", "--encoding=UTF8",
            "--locale-provider=builtin", "--locale=C.UTF-8",
        ]  # fmt: skip
        process = spawn(command, self._account, self._log, death_signal=signal.SIGKILL)
        try:
            code = await wait_exit(process, _INITDB_TIMEOUT_S)
        finally:
            await end(process, ())
        if code != 0:
            fate = "did not end in time" if code is None else f"failed (exit {code})"
            what = f"The database could not be made in {fresh.parent}: initdb {fate}."
            raise failed(what, self._log, before)

    async def start(self) -> None:
        """Start, wait until ready, make what roles and database are missing.

        Raises PortTaken, or SiteProblem with the log's last lines. Leaves no process then.
        """
        await self._clear()
        before = log_size(self._log)
        command: list[str | Path] = [self._bin / "postgres", "-D", self._data]
        options = _OPTIONS | {
            "port": str(self._state.postgres_port),
            "unix_socket_directories": self._socket_folder(),
        }
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        # SIGINT is a fast, clean shutdown: that is what our death must mean to it.
        self._process = spawn(command, self._account, self._log, death_signal=signal.SIGINT)
        ready = False
        try:
            await self._wait_ready(before)
            await self._provision()
            ready = True
        finally:
            if not ready:
                await self.stop()

    def move_to(self, port: int) -> None:
        self._state = msgspec.structs.replace(self._state, postgres_port=port)

    def exited(self) -> int | None:
        """The exit code of a server that ended, reaped; None while it runs."""
        return self._process.poll() if self._process else None

    async def stop(self) -> None:
        """Fast shutdown: sessions are cut, a checkpoint is written. Then harder ways."""
        if self._process is not None:
            await end(self._process, ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0)))
            self._process = None

    def _socket_folder(self) -> str:
        """A folder nobody else may enter, never /tmp; no socket where its path would not fit."""
        folder = self._home / "run"
        if len(str(folder).encode()) > _SOCKET_PATH_BYTES_MAX - len("/.s.PGSQL.65535.lock"):
            return ""
        give(self._account, folder)
        # The server reads a list here: a comma or quote in the path must stay one name.
        return '"' + str(folder).replace('"', '""') + '"'

    async def _clear(self) -> None:
        """End what a killed process of ours, or a killed postmaster, left on the folder."""
        lock = self._data / PID_FILES["postgres"]
        leader = first_int(lock) or -1
        # Without its leader nothing stops the rest but our patience, and nothing is lost by it.
        patience_s = 20.0 if leader in servers_in(self._data, "postgres") else 3.0
        await end_leftovers(self._data, "postgres", leader, signal.SIGINT, patience_s)
        if HAS_PROC:
            # Proved above: no server is here. The pid in a stale lock may be a zombie's or
            # another program's by now, and PostgreSQL would take either for itself.
            lock.unlink(missing_ok=True)

    async def _wait_ready(self, before: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        lock = self._data / PID_FILES["postgres"]
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failure("ended while starting", before)
            # Lines of postmaster.pid: pid … status (src/include/utils/pidfile.h).
            if first_int(lock) == self._process.pid and _lock_status(lock) == "ready":
                return
            await asyncio.sleep(_POLL_S)
        raise self._failure(f"was not ready after {_START_TIMEOUT_S:.0f} s", before)

    def _failure(self, what: str, before: int) -> SiteProblem:
        lines = log_since(self._log, before)
        if "Address already in use" in lines or "could not create any TCP/IP sockets" in lines:
            port = self._state.postgres_port
            return PortTaken(f"Port {port} of the embedded PostgreSQL is taken on 127.0.0.1.")
        return failed(f"The embedded PostgreSQL {what}.", self._log, before)

    async def _provision(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S * 2):
                connection = await psycopg.AsyncConnection.connect(
                    self.url(SUPERUSER), autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
                )
                async with connection:
                    await self._make_roles(connection)
                    await _make_database(connection)
        except (psycopg.Error, TimeoutError) as error:
            raise ChildFailed(
                f"The embedded PostgreSQL could not be prepared ({error}). If parts.json of the "
                "data folder was replaced, put back the one made with this database."
            ) from error

    async def _make_roles(self, connection: psycopg.AsyncConnection) -> None:
        passwords = {OWNER: self._state.owner_password, APP: self._state.app_password}
        cursor = await connection.execute(_MISSING_ROLES, {"names": list(passwords)})
        for (role,) in await cursor.fetchall():
            # The verifier is computed here, so that no statement ever holds the password.
            verifier = connection.pgconn.encrypt_password(
                passwords[role].encode(), role.encode(), b"scram-sha-256"
            )
            statement = _CREATE_ROLE.format(
                role=sql.Identifier(role), verifier=sql.Literal(verifier.decode())
            )
            await connection.execute(statement)


async def _make_database(connection: psycopg.AsyncConnection) -> None:
    cursor = await connection.execute(_DATABASE_EXISTS, {"name": DATABASE})
    database, owner, app = sql.Identifier(DATABASE), sql.Identifier(OWNER), sql.Identifier(APP)
    if await cursor.fetchone() is None:
        await connection.execute(_CREATE_DATABASE.format(database=database, owner=owner))
    # Again at each start: a crash may have come between these and CREATE DATABASE.
    await connection.execute(_CLOSE_DATABASE.format(database=database))
    await connection.execute(_OPEN_DATABASE.format(database=database, app=app))


def _lock_status(lock: Path) -> str:
    try:
        lines = lock.read_text().splitlines()
    except OSError:
        return ""
    return lines[7].strip() if len(lines) > 7 else ""
