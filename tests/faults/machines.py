"""The servers of a site under test, started by the test itself: it may stop, kill and move them.

They are the product's own embedded servers without its supervisor, which would bring them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from backend.kit.clock import SystemRandomness
from backend.kit.embedded.accounts import server_account
from backend.kit.embedded.children import wait_exit
from backend.kit.embedded.postgres import APP, OWNER, SUPERUSER, EmbeddedPostgres
from backend.kit.embedded.programs import reachable_postgres, reachable_valkey
from backend.kit.embedded.state import kept_or_free_port, new_state
from backend.kit.embedded.valkey import EmbeddedValkey
from scripts.kafka import READY_TIMEOUT_S, Broker, find_java

EXTRA_CONFIG = """
archive_mode = on
archive_command = '/bin/true'
max_wal_size = '128MB'
log_min_messages = fatal
"""
"""Nothing is archived until a test wants it: the mode takes a restart, its command does not."""
STOPPED_S = 30.0


class Machines:
    """One Postgres and one Valkey under `place`. Main thread only (see embedded/children.py)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        account = server_account(place / "-")
        state = new_state(SystemRandomness(), str(place))
        programs = reachable_postgres(account, lambda: place)
        self.bin = programs / "bin"
        self.account = account
        self.postgres = EmbeddedPostgres(programs, place, account, place / "postgres.log", state)
        valkey = reachable_valkey(account, lambda: place)
        self.valkey = EmbeddedValkey(valkey, place, account, place / "valkey.log", state)

    @property
    def data(self) -> Path:
        return self.place / "postgres" / "data"

    @property
    def app_url(self) -> str:
        return self.postgres.url(APP)

    @property
    def owner_url(self) -> str:
        return self.postgres.url(OWNER)

    @property
    def superuser_url(self) -> str:
        """In the site's own database."""
        return self.postgres.url(SUPERUSER).rpartition("/")[0] + "/suanpan"

    async def start(self) -> None:
        await self.postgres.prepare()
        with (self.data / "postgresql.conf").open("a") as config:
            config.write(EXTRA_CONFIG)
        await self.valkey.prepare()
        for server in (self.postgres, self.valkey):
            server.move_to(kept_or_free_port(0))
            await server.start()

    async def stop(self) -> None:
        await self.valkey.stop()
        await self.postgres.stop()

    async def drop_postgres(self) -> None:
        """`pg_ctl stop -m immediate`: no checkpoint, no good-byes; WAL is replayed at the start."""
        assert self.postgres.pid is not None
        os.kill(self.postgres.pid, signal.SIGQUIT)
        await self._gone(self.postgres)

    async def kill(self, server: EmbeddedPostgres | EmbeddedValkey) -> None:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await self._gone(server)

    async def _gone(self, server: EmbeddedPostgres | EmbeddedValkey) -> None:
        assert server._process is not None
        await wait_exit(server._process, STOPPED_S)

    def run(self, program: str, *words: str) -> None:
        """A client program of this Postgres, as its user. Raises CalledProcessError."""
        subprocess.run(
            [self.bin / program, *words],
            user=self.account.uid if self.account.drops else None,
            group=self.account.gid if self.account.drops else None,
            extra_groups=[] if self.account.drops else None,
            check=True,
            capture_output=True,
            timeout=120,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )


class GatedBroker(Broker):
    """A broker with a second door that names itself by another port: what comes by way of a gateway
    stays on that way.
    """

    def __init__(self, jars: Path, data_dir: Path, *, port: int, named: int) -> None:
        """`port`: of both doors' plain one; `named`: the gateway's."""
        super().__init__(jars, data_dir, port=port)
        self.inner_port = kept_or_free_port(0)
        self._named = named
        self._waits = True

    async def begin(self) -> None:
        """`start`, with the event loop running on; the process is still made in this thread."""
        await asyncio.to_thread(self._prepare)
        self._waits = False
        self.start()
        self._waits = True
        await asyncio.to_thread(self.wait_ready)

    def _prepare(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        properties = self._write_properties()
        if not (self._data_dir / "log" / "meta.properties").exists():
            self._format(find_java(), properties)

    def wait_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        if self._waits:
            super().wait_ready(timeout_s=timeout_s)

    def _write_properties(self) -> Path:
        properties = super()._write_properties()
        lines = properties.read_text().splitlines()
        doors = {
            "listeners=": f",GATED://127.0.0.1:{self.inner_port}",
            "advertised.listeners=": f",GATED://127.0.0.1:{self._named}",
            "listener.security.protocol.map=": ",GATED:PLAINTEXT",
        }
        for number, line in enumerate(lines):
            lines[number] += next((more for at, more in doors.items() if line.startswith(at)), "")
        properties.write_text("\n".join(lines) + "\n")
        return properties


def pause_tree(pid: int) -> None:
    """SIGSTOP to a server and all its processes."""
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()


def resume_tree(pid: int) -> None:
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def family(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def give_to_server(machines: Machines, folder: Path) -> None:
    """The whole folder becomes the server user's, as a restored data folder must be."""
    if machines.account.drops:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, machines.account.uid, machines.account.gid)


def put_in_place(machines: Machines, backup: Path) -> None:
    """The data folder is a restored backup; what was there is gone."""
    shutil.rmtree(machines.data)
    backup.rename(machines.data)
