"""A site's embedded servers for tests: in this process, or under a supervisor of their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psycopg

from backend.kit.embedded import RunningParts
from backend.kit.runtime_file import process_start_ticks
from backend.kit.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
_PROGRAM = """
import asyncio, json, sys
from backend.kit.embedded import running_parts
from backend.kit.logs import configure_logs
from backend.kit.settings import load_settings
from schemas.errors import SiteProblem

async def main():
    settings = load_settings({}, data_dir=sys.argv[1], embedded_place=sys.argv[2])
    configure_logs(settings.log)
    async with running_parts(settings) as running:
        parts = running.parts
        print(json.dumps({
            "database_url": parts.database_url, "redis_url": parts.redis_url,
            "pids": running.pids(), "place": str(parts.place),
        }), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

try:
    asyncio.run(main())
except SiteProblem as problem:
    print(json.dumps({"problem": problem.sentence}), flush=True)
"""


@contextlib.contextmanager
def open_folder() -> Generator[Path]:
    """A folder every user can enter; pytest's own is private to us."""
    folder = Path(tempfile.mkdtemp(prefix="suanpan-test-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def site_settings(folder: Path, **more: object) -> Settings:
    return load_settings({}, data_dir=folder / "data", embedded_place=str(folder / "place"), **more)


async def eventually(check: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not check():  # noqa: ASYNC110 - other processes have no event
            await asyncio.sleep(0.02)


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def all_gone(pids: dict[str, int]) -> bool:
    return all(process_start_ticks(pid) is None for pid in pids.values())


async def write(running: RunningParts | str, statement: str) -> None:
    url = running if isinstance(running, str) else running.parts.database_owner_url
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement.encode())


async def value(url: str, statement: str) -> Any:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute(statement.encode())).fetchone()
    assert row is not None
    return row[0]


class Site:
    """A supervisor in a process of its own, perhaps another user's."""

    def __init__(
        self,
        folder: Path,
        *,
        python: str = sys.executable,
        uid: int | None = None,
        gid: int | None = None,
        path: str = "",
        before: tuple[str, ...] = (),
    ) -> None:
        self._process = subprocess.Popen(
            [*before, python, "-c", _PROGRAM, str(folder / "data"), str(folder / "place")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={"PYTHONPATH": path or str(ROOT), "PATH": os.environ["PATH"]},
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )

    @functools.cached_property
    def said(self) -> dict[str, Any]:
        """Where its parts are, or its `problem`; waits until it says so."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the site ended without a word"
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def stop(self) -> int:
        return self._end()

    def _end(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(30)
