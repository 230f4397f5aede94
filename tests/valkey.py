"""A Valkey server for tests: loopback, a port and a folder of its own; can be stopped and wiped."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from backend.kit.embedded.programs import find_valkey
from backend.kit.valkey import Valkey

START_TIMEOUT_S = 20.0


class ValkeyServer:
    """One server; keeps its port over stops and starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Empty, as after a wipe; returns once it answers."""
        config = (
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\n"
            f'dir "{self._folder}"\nsave ""\nappendonly no\ndaemonize no\n'
        )
        self._process = subprocess.Popen(
            [find_valkey(), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(config.encode())
        self._process.stdin.close()
        self._wait_ready()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        with self._client() as client:
            client.flushall()

    def entries(self) -> dict[bytes, bytes]:
        """Every key and what it holds, as text that a search can look through."""
        with self._client() as client:
            return {key: repr(client.hgetall(key)).encode() for key in client.scan_iter()}

    def write(self, key: bytes, field: bytes, value: bytes) -> None:
        with self._client() as client:
            client.hset(key, field, value)

    def ttl_ms(self, key: bytes) -> int:
        with self._client() as client:
            return client.pttl(key)

    def commands_run(self) -> int:
        with self._client() as client:
            return client.info("stats")["total_commands_processed"]

    def client(self) -> Valkey:
        """A way to it as processes have it; the caller closes it."""
        return Valkey(self.url, "test:")

    def _wait_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with self._client() as client:
                    client.ping()
                return
            except RedisError:
                assert time.monotonic() < deadline_s, "Valkey does not start"
                time.sleep(0.01)

    def _client(self) -> Redis:
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=5)


@contextmanager
def valkey_server() -> Generator[ValkeyServer]:
    """A running server, ended with the block."""
    with TemporaryDirectory(prefix="suanpan-valkey-") as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
