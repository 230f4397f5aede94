"""Roles of the product as processes that a test may kill, stop and continue."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

from backend.kit.runtime_file import read_runtime

ROOT = Path(__file__).resolve().parents[2]
SECRET = "pR7vXn2Kd9Qw4Lz8Tb6Yc1Hf5Mg3Js0A"
LEASE_S = 2
SHORT_LEASES = {
    "LEASE_SECONDS": str(LEASE_S),
    "LEASE_RENEW_SECONDS": "0.5",
    "LEASE_SWEEP_SECONDS": "0.3",
}
NO_VALKEY = "redis://127.0.0.1:1/0"
"""Given so that no Valkey is started where a test needs none."""
READY_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Role:
    """One process of the command line. Its port and its data folder outlive it."""

    def __init__(
        self,
        name: str,
        folder: Path,
        environment: dict[str, str],
        *,
        code: Path = ROOT,
        module: str = "backend.cli",
    ) -> None:
        """`code`: the tree it runs, this one unless told; `module`: what starts it."""
        self.name = name
        self._module = module
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = folder / "data"
        self.log_path = folder / f"{name}.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(code),
            "SUANPAN_DATA_DIR": str(self.data_dir),
            "EMBEDDED_PLACE": str(folder / "place"),
            "PORT": str(self.port),
            "SECRET": SECRET,
            **SHORT_LEASES,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For commands beside this process."""
        return dict(self._environment)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> None:
        self.folder.mkdir(exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment,
            )

    async def start(self) -> None:
        """Returns when it says that it is ready."""
        self.spawn()
        await self.until_ready()

    async def until_ready(self) -> None:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(READY_TIMEOUT_S):
            while not await self._is_ready(client):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.03)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    async def ended(self) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)

    def end(self) -> None:
        """Whatever state it is in: SIGTERM, then SIGKILL."""
        if self._process is None or self._process.poll() is not None:
            return
        servers = psutil.Process(self.pid).children(recursive=True)
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            # Its servers end a little later, and still write to their folder until then.
            psutil.wait_procs(servers, STOP_TIMEOUT_S)

    def child(self, name: str) -> psutil.Process:
        """The embedded server with this program name. StopIteration where there is none."""
        children = psutil.Process(self.pid).children(recursive=True)
        return next(child for child in children if child.name() == name)

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-3000:]

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended while starting:\n{self.log_tail()}")
        try:
            answer = await client.get(f"{self.url}/health", timeout=5)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200


def database_url(role: Role) -> str:
    """Of a running `serve` with an embedded Postgres."""
    runtime = read_runtime(role.data_dir)
    assert runtime is not None
    return runtime.database_url
