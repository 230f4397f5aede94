"""The scaled shape runs: the image's steps in a clean root, each compose service as a process.

Kafka, PostgreSQL and Valkey are real; their host names are replaced by loopback addresses.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import httpx
import msgspec
import psycopg
import pytest
import yaml

from backend.kit.embedded import RunningParts, running_parts
from backend.kit.embedded.programs import find_postgres
from backend.kit.embedded.state import read_state
from tests.embedded_site import open_folder, site_settings
from tests.image_root import ROOT, CannotBuild, Image, build
from tests.integration.kafka_broker import kafka_bootstrap, kafka_jars
from tests.upstream import FakeUpstream

__all__ = ["kafka_bootstrap", "kafka_jars"]

ROLES: Final = ("api", "worker", "projector", "publisher", "witness")
REFERENCE: Final = re.compile(r"\$\{(\w+)(?::(?:-([^}]*)|\?[^}]*))?\}")
READY_S: Final = 60


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    try:
        yield build(folder)
    except CannotBuild as reason:
        if reason.curable and os.environ.get("SUANPAN_TEST_REQUIRE_ALL") == "1":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Place:
    """The compose file's services with their host names replaced by this machine's addresses."""

    def __init__(self, image: Image, parts: RunningParts, kafka: str, chosen: dict[str, str]):
        text = (ROOT / "docker-compose.yaml").read_text()
        self.services: dict[str, Any] = yaml.safe_load(text)["services"]
        self._image = image
        self._chosen = chosen
        self._kafka = kafka
        self._postgres = urlsplit(parts.parts.database_url).netloc.rpartition("@")[2]
        self._redis_url = parts.parts.redis_url
        self._ports: dict[str, int] = {}

    def environment(self, service: str) -> dict[str, str]:
        given: dict[str, Any] = self.services[service]["environment"]
        filled = {
            name: REFERENCE.sub(self._chosen_or_default, str(value))
            for name, value in given.items()
        }
        filled = {
            name: value.replace("postgres:5432", self._postgres).replace("kafka:9092", self._kafka)
            for name, value in filled.items()
        }
        if "REDIS_URL" in filled:
            filled["REDIS_URL"] = self._redis_url
        filled["HOST"] = "127.0.0.1"
        filled["PORT"] = str(self._ports.setdefault(service, _free_port()))
        filled["SUANPAN_DATA_DIR"] = f"/data/{service}"
        return filled

    def _chosen_or_default(self, found: re.Match[str]) -> str:
        chosen = self._chosen.get(found[1], found[2])
        assert chosen is not None, f"{found[1]} has no default and is not in .env"
        return chosen

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self._ports[service]}"

    def start(self, service: str, log: Path) -> subprocess.Popen[bytes]:
        command: list[str] = self.services[service]["command"]
        with log.open("wb") as output:
            return subprocess.Popen(
                self._image.argv(command, self.environment(service)),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self, *words: str, given: str = "") -> Any:
        """`suanpan … --json` beside the api service; its JSON."""
        done = subprocess.run(
            self._image.argv(["suanpan", *words, "--json"], self.environment("api")),
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Servers(msgspec.Struct, frozen=True):
    running: RunningParts
    superuser_url: str


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    """PostgreSQL with nothing of ours in it, as the official image starts, and Valkey."""
    with open_folder() as folder:
        settings = site_settings(folder)
        async with running_parts(settings) as running:
            state = read_state(settings.data_dir)
            assert state is not None
            port = urlsplit(running.parts.database_url).port
            password = quote(state.superuser_password, safe="")
            url = f"postgresql://suanpan_super:{password}@127.0.0.1:{port}/postgres"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP DATABASE suanpan WITH (FORCE)")
                connection.execute("DROP ROLE suanpan_owner")
                connection.execute("DROP ROLE suanpan_app")
            yield Servers(running, url)


def _make_roles(url: str, chosen: dict[str, str]) -> None:
    """Runs the script that the postgres service runs at its first start."""
    address = urlsplit(url)
    environment = {
        "PATH": f"{find_postgres() / 'bin'}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(address.port),
        "PGPASSWORD": unquote(address.password or ""),
        "POSTGRES_USER": str(address.username),
        "POSTGRES_OWNER_PASSWORD": chosen["POSTGRES_OWNER_PASSWORD"],
        "POSTGRES_APP_PASSWORD": chosen["POSTGRES_APP_PASSWORD"],
    }
    script = ROOT / "deploy" / "postgres" / "10-roles.sh"
    subprocess.run(["/bin/sh", script], env=environment, check=True, timeout=60)


def _said(service: str, log: Path) -> str:
    return f"{service} ended: {log.read_text()[-3000:]}"


async def _ready(place: Place, service: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with asyncio.timeout(READY_S), httpx.AsyncClient(trust_env=False) as client:
        while True:
            assert process.poll() is None, _said(service, log)
            try:
                if (await client.get(f"{place.url(service)}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)


async def test_a_chat_goes_through_the_scaled_shape(
    image: Image, servers: Servers, kafka_bootstrap: str, tmp_path: Path
) -> None:
    names = ("SECRET", "POSTGRES_OWNER_PASSWORD", "POSTGRES_APP_PASSWORD", "VALKEY_PASSWORD")
    chosen = {name: secrets.token_hex(32) for name in names}
    place = Place(image, servers.running, kafka_bootstrap, chosen)
    _make_roles(servers.superuser_url, chosen)
    migrated = await asyncio.to_thread(place.start("migrate", tmp_path / "migrate.log").wait, 120)
    assert migrated == 0, _said("migrate", tmp_path / "migrate.log")
    logs = {role: tmp_path / f"{role}.log" for role in ROLES}
    processes = {role: place.start(role, logs[role]) for role in ROLES}
    try:
        await asyncio.gather(*(_ready(place, r, processes[r], logs[r]) for r in ROLES))
        async with FakeUpstream() as upstream:
            await asyncio.to_thread(_furnish, place, upstream.url)
            key = (await asyncio.to_thread(place.command, "key", "create", "--user", "ada"))["key"]
            await _chat(place.url("api"), key)
            assert len(upstream.seen) == 1
        await _settled_everywhere(place)
    finally:
        for process in processes.values():
            process.terminate()
        codes = {r: await asyncio.to_thread(p.wait, 60) for r, p in processes.items()}
    assert set(codes.values()) == {0}, codes


def _furnish(place: Place, upstream_url: str) -> None:
    place.command("user", "create", "ada", "--password-stdin", given="correct horse battery\n")
    place.command("grant", "--user", "ada", "--points", "10", "--reason", "a test")
    channel = ("--type", "openai", "--base-url", upstream_url, "--models", "gpt-test")
    place.command("channel", "add", "--name", "up", *channel, "--secret-stdin", given="sk-up\n")
    place.command("price", "set", "--model", "gpt-test", "--per-call", "1")


async def _chat(url: str, key: str) -> None:
    body = {"model": "gpt-test", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"}
    async with asyncio.timeout(READY_S), httpx.AsyncClient(trust_env=False) as client:
        while True:
            answer = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            # The api learns of the new key, channel and price by their events.
            if answer.status_code not in (401, 404):
                break
            await asyncio.sleep(0.1)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-suanpan-points"] == "1"


async def _settled_everywhere(place: Place) -> None:
    """The decision state, the projection that read Kafka, and both replays say the same."""
    balance = await asyncio.to_thread(place.command, "balance", "--user", "ada")
    assert balance == {"posted": "9", "held": "0", "available": "9"}
    async with asyncio.timeout(READY_S):
        while True:
            statement = await asyncio.to_thread(place.command, "statement", "--user", "ada")
            if len(statement["entries"]) == 2:
                break
            await asyncio.sleep(0.2)
    table = await asyncio.to_thread(place.command, "replay", "--from", "table")
    kafka = await asyncio.to_thread(place.command, "replay", "--from", "kafka")
    assert table["digest"] == kafka["digest"]
    assert table["events"] == kafka["events"] > 0
