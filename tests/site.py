"""A whole relay for tests: in this process on a free port, or any role in a process of its own.

Customers, prices and channels are made through the real services; the ledger is read as it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import psycopg
from prometheus_client import CollectorRegistry

from backend.app.consumers import add_projector
from backend.app.foundation import Foundation, part_of_a_site
from backend.app.health import HealthCheck
from backend.app.relay import Relay, relay_of
from backend.app.serving import address_of, bound_socket, serve
from backend.folds import ALL_FOLDS
from backend.grants import GrantAsked, Grants
from backend.http.site import Site as SiteParts
from backend.identity.service import KeyAsked
from backend.journal.reader import read_stream
from backend.journal.view import load_states
from backend.kit.postgres import fetch_all
from backend.kit.settings import Settings, load_settings
from backend.ledger.account import Account
from backend.ledger.points import account_state
from schemas.catalog import ChannelSettings
from schemas.ids import ChannelId, KeyId, PersonId, StreamName, account_stream
from schemas.ledger import HoldReleased, HoldSettled, LedgerEvent
from schemas.money import parse_points
from schemas.prices import PerToken, Price
from schemas.registry import decode
from tests.conftest import Database, Server
from tests.integration.identity_site import SECRET_TEXT, until

ROOT = Path(__file__).resolve().parents[1]
REDIS_ELSEWHERE = "redis://127.0.0.1:1/0"
"""Given so that no Valkey is started: the relay needs none."""
MODEL = "m"
UPSTREAM_SECRET = "sk-upstreamsecret0123456789"
PRICE = PerToken(input_npt=100_000, output_npt=200_000)
"""0.1 points per 1,000 input tokens, 0.2 per 1,000 output tokens: 100 and 200 µpt a token."""
HELLO = ({"role": "user", "content": "Hello"},)
TIMEOUT_S = 20.0
_ROLE = """
import os, sys
from backend.app import run
from backend.kit.settings import load_settings
run(sys.argv[1], load_settings(os.environ))
"""


def chat(model: str = MODEL, **more: Any) -> dict[str, Any]:
    """A request's body; `stream=True` and any other parameter by name."""
    return {"model": model, "messages": list(HELLO), **more}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


class Customer(msgspec.Struct, frozen=True):
    """A person with an account and one key."""

    person: PersonId
    account: StreamName
    key: str
    key_id: KeyId


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer. Header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class Streamed:
    """A streamed answer being read, frame by frame. Its head is waited for where it is needed."""

    def __init__(self, opening: Awaitable[aiohttp.ClientResponse]) -> None:
        self._opening = asyncio.ensure_future(opening)

    async def opened(self) -> aiohttp.ClientResponse:
        return await self._opening

    async def frame(self) -> bytes:
        """The next frame with its blank line; what is left of one at the end."""
        try:
            return await (await self._opening).content.readuntil(b"\n\n")
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def frames(self, count: int) -> list[bytes]:
        return [await self.frame() for _ in range(count)]

    async def rest(self) -> bytes:
        """Everything to the end. Raises aiohttp.ClientPayloadError where the end is improper."""
        return await (await self._opening).content.read()

    def drop(self) -> None:
        """Hang up, as a closed tab does."""
        if self._opening.done() and not self._opening.cancelled():
            if self._opening.exception() is None:
                self._opening.result().close()
        else:
            self._opening.cancel()


VIEWED_KINDS = ("key", "person", "channel", "price", "plan", "group", "limit")
VIEWED = "SELECT stream FROM streams WHERE split_part(stream, ':', 1) = ANY(%(kinds)s)"


class RunningSite:
    """A site whose clock, database, ledger and relay are real."""

    def __init__(self, database: Database, base: Foundation, relay: Relay, url: str) -> None:
        self.database = database
        self.base = base
        self.relay = relay
        self.url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        self._grants = Grants(base.writer, base.pool, base.identity, base.secret)
        self._names = 0

    async def close(self) -> None:
        await self._session.close()

    async def customer(self, points: str | None = "10", **key: Any) -> Customer:
        """A new person with so many points; `models` and `expires_us` limit the key."""
        self._names += 1
        person = (await self.base.opening.open_person(f"person-{self._names}", None)).person
        if points is not None:
            await self._grants.grant(GrantAsked(person, parse_points(points), "test"), actor="cli")
        new = await self.base.identity.create_key(person, KeyAsked("test", **key))
        await self.refresh()
        return Customer(person, account_stream(person), new.text, new.key)

    async def grant(self, customer: Customer, points: str) -> None:
        asked = GrantAsked(customer.person, parse_points(points), "test")
        await self._grants.grant(asked, actor="cli")

    def model(self) -> str:
        """A model's name that no other test uses."""
        self._names += 1
        return f"m-{self._names}"

    async def serves(
        self,
        base_url: str,
        *models: str,
        price: Price | None = PRICE,
        secret: str = UPSTREAM_SECRET,
        **settings: Any,
    ) -> ChannelId:
        """A channel for these models (default: MODEL), priced alike."""
        models = models or (MODEL,)
        self._names += 1
        added = await self.base.opening.add_channel(
            ChannelSettings(f"channel-{self._names}", "openai", base_url, models, **settings),
            secret,
        )
        if price is not None:
            for model in models:
                await self.base.catalog.set_price(model, price)
        await self.refresh()
        return added.channel

    async def refresh(self) -> None:
        """All that was committed is known. Not by the log's order alone: readers stay below what
        is open anywhere on the server, and tests share one.
        """
        await self.relay.view.refresh()
        async with self.base.pool.connection() as connection:
            found = await fetch_all(connection, VIEWED, {"kinds": list(VIEWED_KINDS)})
        await self.relay.view.reread(*(stream for (stream,) in found))

    async def ask(self, key: str, body: dict[str, Any] | bytes, **headers: str) -> Reply:
        """POST /v1/chat/completions; header names with `_` for `-`."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.send("POST", "/v1/chat/completions", {**bearer(key), **more}, data)

    async def get(self, path: str, key: str | None = None) -> Reply:
        return await self.send("GET", path, {} if key is None else bearer(key))

    async def send(
        self, method: str, path: str, headers: dict[str, str], data: Any = None
    ) -> Reply:
        async with self._session.request(
            method, self.url + path, headers=headers, data=data
        ) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, names, await response.read())

    @asynccontextmanager
    async def stream(
        self, key: str, body: dict[str, Any], **headers: str
    ) -> AsyncGenerator[Streamed]:
        """A streamed call under way; the connection ends with the block."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = Streamed(
            self._session.post(
                self.url + "/v1/chat/completions",
                headers={**bearer(key), **more},
                data=json.dumps({**body, "stream": True}).encode(),
            )
        )
        try:
            yield answer
        finally:
            answer.drop()

    async def account(self, customer: Customer) -> Account:
        """The account's state, as decisions see it."""
        async with self.base.pool.connection() as connection:
            states = await load_states(connection, ALL_FOLDS, [customer.account])
        return account_state(states[customer.account][1])

    async def events(self, customer: Customer) -> list[LedgerEvent]:
        """The account's events, oldest first."""
        async with self.base.pool.connection() as connection:
            rows = await read_stream(connection, customer.account, 1)
        return [decode(row) for row in rows]  # pyright: ignore[reportReturnType]

    async def ended(self, customer: Customer, count: int = 1) -> list[HoldSettled | HoldReleased]:
        """The account's outcomes, once there are so many and no hold is open."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                ends = outcomes(await self.events(customer))
                if len(ends) >= count and not (await self.account(customer)).holds:
                    return ends
                await asyncio.sleep(0.01)

    async def idle(self) -> None:
        """Returns once no call is under way in this process."""
        await until(lambda: len(self.relay.front.calls) == 0)

    async def noticed(self) -> None:
        """Returns once the server has closed its end of every connection that was hung up."""
        port = int(self.url.rpartition(":")[2])
        own = psutil.Process()
        await until(
            lambda: (
                not any(
                    open_.laddr.port == port and open_.status != psutil.CONN_LISTEN
                    for open_ in own.net_connections("tcp")
                )
            )
        )
        await asyncio.sleep(0)


def outcomes(events: Iterable[LedgerEvent]) -> list[HoldSettled | HoldReleased]:
    return [event for event in events if isinstance(event, HoldSettled | HoldReleased)]


def balances(events: Iterable[LedgerEvent]) -> list[tuple[int, int, int]]:
    """(posted, held, available) after each event; a history that breaks an invariant raises."""
    state, found = Account(), []
    for version, event in enumerate(events, 1):
        state = ALL_FOLDS.of("account:1").apply(state, event, version, 0)
        found.append((state.posted_upt, state.held_upt, state.available_upt))
    return found


@asynccontextmanager
async def shared_site(server: Server, folder: Path, **settings: Any) -> AsyncGenerator[RunningSite]:
    """A site on a database of its own for all tests of a module: each takes its own model."""
    database = server.fresh()
    try:
        async with running_site(database, folder, **settings) as site:
            yield site
    finally:
        server.drop(database)


def settings_of(database: Database, folder: Path, **more: Any) -> Settings:
    return load_settings(
        {},
        data_dir=folder / "data",
        database_url=database.app_url,
        database_owner_url=database.owner_url,
        secret=SECRET_TEXT,
        port=0,
        **{"redis_url": REDIS_ELSEWHERE, **more},
    )


@asynccontextmanager
async def running_site(
    database: Database, folder: Path, *, projecting: bool = False, **settings: Any
) -> AsyncGenerator[RunningSite]:
    """The relay on `database`, served on a free loopback port inside this loop.

    `settings` by their environment names in lower case: `relay_keepalive_s=0.2`.
    """
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        chosen = settings_of(database, folder, **settings)
        base = await stack.enter_async_context(part_of_a_site(chosen))
        health = HealthCheck(base, "serve")
        if projecting:
            await add_projector(base, health, registry, stack)
        parts = SiteParts("serve", health, registry)
        relay = await stack.enter_async_context(relay_of(base, parts, registry))
        bound, stop = bound_socket("127.0.0.1", 0), asyncio.Event()
        serving = asyncio.create_task(serve(relay.app, bound, stop, chosen.http))
        site = RunningSite(database, base, relay, address_of(bound))
        try:
            yield site
        finally:
            await site.close()
            stop.set()
            await serving


class RoleProcess:
    """A role of the site as a process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    @property
    def log(self) -> str:
        """What it wrote on stderr so far."""
        return self._log.read_text("utf-8")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self.process.wait(), timeout_s)


@asynccontextmanager
async def role_process(
    role: str, database: Database, folder: Path, **environment: str
) -> AsyncGenerator[RoleProcess]:
    """Starts a role and waits until its health answers; killed at the end if it still runs."""
    log = _log_in(folder)
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "SUANPAN_DATA_DIR": str(folder / "data"),
        "DATABASE_URL": database.app_url,
        "DATABASE_OWNER_URL": database.owner_url,
        "REDIS_URL": REDIS_ELSEWHERE,
        "SECRET": SECRET_TEXT,
        "HOST": "127.0.0.1",
        "PORT": "0",
        **environment,
    }
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _ROLE,
            role,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=variables,
            cwd=folder,
        )
    try:
        async with asyncio.timeout(TIMEOUT_S * 3):
            url = await _address_said(process)
            running = RoleProcess(process, url, log)
            assert url, f"the role ended without an address: {running.log[-2000:]}"
            await _answers(url)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _log_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "stderr"


async def _address_said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        at = line.find("http://127.0.0.1:")
        if at >= 0:
            return line[at:].strip()
    return ""


async def _answers(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.02)


def count_rows(database: Database, condition: bytes) -> int:
    """How many events satisfy an SQL condition, seen from outside the site."""
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        row = connection.execute(b"SELECT count(*) FROM event_log WHERE " + condition).fetchone()
    assert row is not None
    return row[0]
