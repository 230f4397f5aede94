"""The site a measurement runs against: embedded parts, accounts, keys, a channel; and its roles."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import httpx
import msgspec

from backend.app.foundation import Foundation, site_of_its_own
from backend.grants import GrantAsked, Grants
from backend.identity.service import KeyAsked
from backend.kit.settings import load_settings
from bench.children import START_TIMEOUT_S, BenchmarkProblem, running
from bench.plan import Target
from bench.shapes import SHAPES
from schemas.catalog import ChannelSettings
from schemas.ids import PersonId, account_stream
from schemas.money import UPT_PER_POINT, MicroPoints
from schemas.prices import PerToken

POINTS_PER_ACCOUNT: Final = MicroPoints(1_000_000 * UPT_PER_POINT)
PRICE: Final = PerToken(input_npt=1_000, output_npt=2_000)
LOG_LINES_SHOWN: Final = 8
_POLL_S: Final = 0.05


class BenchSite(msgspec.Struct, frozen=True):
    """A site ready for calls; nothing serves it yet. Holds passwords and keys."""

    folder: Path
    foundation: Foundation
    accounts: tuple[str, ...]
    keys: tuple[str, ...]
    upstream_pid: int
    upstream: Target
    kafka: str | None
    """Bootstrap servers, or None."""

    def __repr__(self) -> str:
        return f"BenchSite(folder={self.folder}, accounts={len(self.accounts)})"

    @property
    def environment(self) -> dict[str, str]:
        """What a role needs to find the site's parts."""
        urls = self.foundation.parts.parts
        given = {
            "SUANPAN_DATA_DIR": str(self.foundation.settings.data_dir),
            "DATABASE_URL": urls.database_url,
            "DATABASE_OWNER_URL": urls.database_owner_url,
            "REDIS_URL": urls.redis_url,
            "HOST": "127.0.0.1",
            "LOG_LEVEL": "warning",
        }
        return given | ({"KAFKA_BOOTSTRAP_SERVERS": self.kafka} if self.kafka else {})

    @property
    def postgres_pid(self) -> int:
        return self.foundation.parts.pids()["postgres"]


class Role(msgspec.Struct, frozen=True):
    """A running role."""

    name: str
    pid: int
    target: Target


@contextmanager
def bench_folder() -> Generator[Path]:
    """A folder that the embedded servers' user can enter too."""
    folder = Path(tempfile.mkdtemp(prefix="suanpan-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def opened_site(
    folder: Path, accounts: int, upstream: tuple[int, int], kafka: str | None = None
) -> AsyncGenerator[BenchSite]:
    """An own Postgres (fsync on) and Valkey, `accounts` people with points and a key each, one
    channel to the upstream given as (process id, port)."""
    settings = load_settings(
        {},
        data_dir=folder / "data",
        embedded_place=str(folder / "place"),
        kafka_bootstrap_servers=kafka,
        log_level="warning",
    )
    async with site_of_its_own(settings) as foundation:
        pid, port = upstream
        await _add_channel(foundation, f"http://127.0.0.1:{port}/v1")
        grants = Grants(foundation.writer, foundation.pool, foundation.identity, foundation.secret)
        made = [await _account(foundation, grants, number) for number in range(accounts)]
        yield BenchSite(
            folder,
            foundation,
            tuple(account_stream(person) for person, _ in made),
            tuple(key for _, key in made),
            pid,
            Target("127.0.0.1", port),
            kafka,
        )


async def _add_channel(foundation: Foundation, base_url: str) -> None:
    models = tuple(SHAPES)
    settings = ChannelSettings("bench upstream", "openai", base_url, models)
    await foundation.opening.add_channel(settings, "sk-upstream")
    for model in models:
        await foundation.catalog.set_price(model, PRICE)


async def _account(foundation: Foundation, grants: Grants, number: int) -> tuple[PersonId, str]:
    opened = await foundation.opening.open_person(f"bench{number}", None)
    await grants.grant(GrantAsked(opened.person, POINTS_PER_ACCOUNT, "benchmark"), actor="cli")
    key = await foundation.identity.create_key(opened.person, KeyAsked(name="bench"))
    return opened.person, key.text


@asynccontextmanager
async def roles_of(
    site: BenchSite, names: Sequence[str], *, profile: Path | None = None
) -> AsyncGenerator[list[Role]]:
    """Runs roles of the site, each a process, until all say they are ready.

    `profile`: the first of them writes a sampled profile there when it ends.
    """
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(
                _role(site, name, number, profile if number == 0 else None)
            )
            for number, name in enumerate(names)
        ]
        yield started


@asynccontextmanager
async def _role(
    site: BenchSite, name: str, number: int, profile: Path | None
) -> AsyncGenerator[Role]:
    log = site.folder / f"{name}-{number}.log"
    port = free_port()
    env = site.environment | {"PORT": str(port)}
    words = [sys.executable, "-m", "bench.role", name]
    if profile is not None:
        words += ["--profile", str(profile)]
    async with running(words, env=env, log=log) as process:
        target = Target("127.0.0.1", port)
        try:
            await wait_until_ready(f"http://127.0.0.1:{port}", process)
        except BenchmarkProblem as problem:
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            raise BenchmarkProblem("\n".join([f"{name}: {problem}", *lines])) from problem
        yield Role(name, process.pid, target)


async def wait_until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    """Until `GET /health` is 200. Raises BenchmarkProblem."""
    said = "nothing listens there"
    try:
        async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient() as client:
            while process.returncode is None:
                try:
                    answer = await client.get(f"{url}/health")
                except httpx.TransportError:
                    pass
                else:
                    if answer.status_code == 200:
                        return
                    said = answer.text
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise BenchmarkProblem(f"it is not ready: {said}") from None
    raise BenchmarkProblem(f"it ended with status {process.returncode}")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
