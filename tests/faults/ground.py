"""The supervisor: a whole site in its scaled shape, every road of which leads through a gateway.

Two answering processes, one that sweeps, one that projects, one that publishes; Postgres, Valkey
and Kafka of its own; a provider in the test's process. Ends only what it started.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType

from backend.journal.migrate import migrate
from backend.kit.embedded.state import kept_or_free_port
from schemas.money import UPT_PER_POINT
from tests.faults.gateway import Gateway
from tests.faults.jumping_clock import VARIABLE, JumpingClock
from tests.faults.machines import GatedBroker, Machines
from tests.faults.roles import Role
from tests.faults.site import (
    PLENTY,
    SCANT,
    Account,
    open_people,
    stock_catalogue,
    until_served,
    upstream_with_models,
)

IMPATIENCE = {
    "RELAY_FIRST_BYTE_TIMEOUT_S": "3",
    "RELAY_IDLE_TIMEOUT_S": "3",
    "RELAY_COOLDOWN_S": "0.5",
}
"""Silence of a provider must not outlast a test."""


class Ground:
    """Use with `async with`, on one event loop, in the main thread."""

    def __init__(
        self, folder: Path, kafka_jars: Path | None, *, servers_place: Path | None = None
    ) -> None:
        """`servers_place`: where the servers' data lie, else in `folder`."""
        self.folder = folder
        self.spoiled = False
        """A check failed: the next fault gets a ground of its own."""
        self.upstream = upstream_with_models()
        self._jars = kafka_jars
        self._place = servers_place or folder
        self._stack = AsyncExitStack()
        self._histories = 0

    async def __aenter__(self) -> Ground:
        async with AsyncExitStack() as self._stack:
            await self._start_servers()
            await self._start_roles()
            # Only a ground that stands is left standing.
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start_servers(self) -> None:
        self.machines = Machines(self._place)
        await self.machines.start()
        self._stack.push_async_callback(self.machines.stop)
        postgres = self.machines.app_url
        self.gate_a = await self._gate(postgres)
        self.gate_b = await self._gate(postgres)
        self.gate_rest = await self._gate(postgres)
        await self._stack.enter_async_context(self.upstream)
        self.gate_upstream = await self._gate(self.upstream.url)
        self.broker: GatedBroker | None = None
        if self._jars is not None:
            port = kept_or_free_port(0)
            self.gate_kafka = await self._gate(f"127.0.0.1:{port}")
            named = int(self.gate_kafka.address.rpartition(":")[2])
            self.broker = GatedBroker(self._jars, self.folder / "kafka", port=port, named=named)
            self.gate_kafka.lead_to(self.broker.inner_port)
            await self.broker.begin()
            self._stack.callback(self.broker.stop)
        await asyncio.to_thread(migrate, self.machines.owner_url, self.machines.app_url)

    async def _gate(self, url: str) -> Gateway:
        return await self._stack.enter_async_context(Gateway(url))

    async def _start_roles(self) -> None:
        await stock_catalogue(self.environment, self.gate_upstream.through(self.upstream.url))
        self.clock = JumpingClock(self.folder / "clock")
        self.api_a = self._role("api", "a", self.gate_a)
        self.api_b = self._role("api", "b", self.gate_b, module="tests.faults.jumping_clock")
        self.worker = self._role("worker", "worker", self.gate_rest)
        self.projector = self._role("projector", "projector", self.gate_rest)
        self.publisher = self._role("publisher", "publisher", self.gate_rest)
        self.roles = [self.api_a, self.api_b, self.worker, self.projector]
        if self.broker is not None:
            self.roles.append(self.publisher)
        self._stack.push_async_callback(self._end_roles)
        # Side by side they would only wait for one another's processor.
        await asyncio.gather(*(role.start() for role in self.roles))

    async def _end_roles(self) -> None:
        # In threads: what they still have to write passes through our gateways.
        await asyncio.gather(*(asyncio.to_thread(role.end) for role in self.roles))

    def _role(self, name: str, home: str, gate: Gateway, module: str = "backend.cli") -> Role:
        environment = {
            **IMPATIENCE,
            "DATABASE_URL": gate.through(self.machines.app_url),
            "REDIS_URL": self.machines.valkey.url(),
            VARIABLE: str(self.folder / "clock"),
        }
        if self.broker is not None:
            environment["KAFKA_BOOTSTRAP_SERVERS"] = self.gate_kafka.address
        return Role(name, self.folder / home, environment, module=module)

    @property
    def environment(self) -> dict[str, str]:
        """For commands beside the site: by the servers' own ports, past all gateways."""
        return Role("cli", self.folder / "cli", self._direct()).environment

    def _direct(self) -> dict[str, str]:
        direct = {
            "DATABASE_URL": self.machines.app_url,
            "DATABASE_OWNER_URL": self.machines.owner_url,
            "REDIS_URL": self.machines.valkey.url(),
        }
        if self.broker is not None:
            direct["KAFKA_BOOTSTRAP_SERVERS"] = self.broker.bootstrap
        return direct

    @property
    def urls(self) -> tuple[str, str]:
        return (self.api_a.url, self.api_b.url)

    @property
    def database_url(self) -> str:
        return self.machines.app_url

    async def open_accounts(self, *amounts_upt: int) -> tuple[Account, ...]:
        """People whom both answering processes know. Two rich ones and a poor one unless told."""
        usual = tuple(points * UPT_PER_POINT for points in (PLENTY, PLENTY, SCANT))
        accounts = await open_people(self.environment, amounts_upt or usual)
        await asyncio.gather(*(until_served(url, accounts) for url in self.urls))
        return accounts

    def history_path(self, fault: str) -> Path:
        self._histories += 1
        return self.folder / f"history-{self._histories}-{fault}.jsonl"

    def logs(self) -> str:
        """The ends of all logs, for a failure."""
        return "\n".join(f"--- {role.name}\n{role.log_tail()[-1200:]}" for role in self.roles)
