"""The embedded Valkey: its folder and its process.

Must not know keys.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from pathlib import Path

import msgspec

from backend.kit.embedded.accounts import Account, give
from backend.kit.embedded.children import (
    PID_FILES,
    ChildFailed,
    end,
    end_leftovers,
    failed,
    log_since,
    log_size,
    spawn,
)
from backend.kit.embedded.postgres import PortTaken
from backend.kit.embedded.state import PartsState
from backend.kit.private_files import unwritable

_START_TIMEOUT_S = 60.0
_PING_TIMEOUT_S = 2.0
_POLL_S = 0.01

# Read from stdin, so that neither a file nor the process list shows the password.
_CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir "{folder}"
pidfile "{folder}/{pid_file}"
daemonize no
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 16mb
save ""
maxmemory 128mb
maxmemory-policy volatile-ttl
maxclients 500
tcp-keepalive 60
loglevel notice
"""


class EmbeddedValkey:
    """One Valkey server under `<place>/valkey`. Not started when made."""

    name = "valkey"

    def __init__(
        self, program: Path, place: Path, account: Account, log: Path, state: PartsState
    ) -> None:
        self._program = program
        self._folder = (place / "valkey").absolute()
        self._account = account
        self._log = log
        self._state = state
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self._log

    @property
    def port(self) -> int:
        return self._state.valkey_port

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def url(self) -> str:
        return f"redis://:{self._state.valkey_password}@127.0.0.1:{self._state.valkey_port}/0"

    async def prepare(self) -> None:
        """End orphans on the data folder; make it if it is missing. Raises SiteProblem."""
        await self._clear()
        try:
            give(self._account, self._folder)
        except OSError as error:
            raise unwritable(self._folder, error) from error

    async def start(self) -> None:
        """Start and wait until it answers. Raises PortTaken or SiteProblem; leaves no process."""
        await self._clear()
        before = log_size(self._log)
        config = _CONFIG.format(
            port=self._state.valkey_port,
            password=self._state.valkey_password,
            pid_file=PID_FILES["valkey-server"],
            folder=str(self._folder).replace("\\", "\\\\").replace('"', '\\"'),
        )
        self._process = spawn(
            [self._program, "-"],
            self._account,
            self._log,
            death_signal=signal.SIGTERM,
            stdin=config.encode(),
        )
        ready = False
        try:
            await self._wait_ready(before)
            ready = True
        finally:
            if not ready:
                await self.stop()

    def move_to(self, port: int) -> None:
        self._state = msgspec.structs.replace(self._state, valkey_port=port)

    def exited(self) -> int | None:
        """The exit code of a server that ended, reaped; None while it runs."""
        return self._process.poll() if self._process else None

    async def stop(self) -> None:
        """Write and end; kill it if it will not."""
        if self._process is not None:
            await end(self._process, ((signal.SIGTERM, 10.0),))
            self._process = None

    async def _clear(self) -> None:
        await end_leftovers(self._folder, "valkey-server", None, signal.SIGTERM, 10.0)

    async def _wait_ready(self, before: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failure("ended while starting", before)
            if await self._answers():
                return
            await asyncio.sleep(_POLL_S)
        raise self._failure(f"was not ready after {_START_TIMEOUT_S:.0f} s", before)

    async def _answers(self) -> bool:
        """Whether it takes our password and says PONG (not while it loads its file)."""
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._state.valkey_port)
                try:
                    writer.write(f"AUTH {self._state.valkey_password}\r\nPING\r\n".encode())
                    signed_in, pong = await reader.readline(), await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
        return signed_in == b"+OK\r\n" and pong == b"+PONG\r\n"

    def _failure(self, what: str, before: int) -> ChildFailed | PortTaken:
        lines = log_since(self._log, before)
        if "Address already in use" in lines or "Failed listening on port" in lines:
            port = self._state.valkey_port
            return PortTaken(f"Port {port} of the embedded Valkey is taken on 127.0.0.1.")
        return failed(f"The embedded Valkey {what}.", self._log, before)
