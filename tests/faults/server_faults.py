"""Faults of the servers behind the site, and of what is made from its log while it runs."""

from __future__ import annotations

import asyncio
import time
from random import Random

import httpx
import psycopg
import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from backend.kit.postgres import connect, fetch_all
from projections.declared import PROJECTIONS
from schemas.errors import InsufficientPoints
from tests.faults.books import command
from tests.faults.chance import asked_rounds
from tests.faults.ground import Ground
from tests.faults.load import Call, Ending, Load
from tests.faults.machines import pause_tree, resume_tree
from tests.faults.nemesis import Nemesis
from tests.faults.site import Account
from tests.faults.verdict import Verdict

BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE application_name LIKE 'suanpan%%' AND pid <> pg_backend_pid()
"""
TERMINATE = "SELECT pg_terminate_backend(%(pid)s)"
TOUCH = "SELECT 1 FROM streams WHERE stream = %(stream)s FOR UPDATE"
PATIENT = "SET deadlock_timeout = '20s'"
"""Our own backend never looks for deadlocks: the product's is the one that finds it, and loses."""
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


class DatabaseRestarts(Nemesis):
    fault, what = "F9", "Postgres stopped at once and started, WAL replayed"
    rounds_short = 1
    lasts_s = (0.2, 1.0)

    def __init__(self) -> None:
        self._redo_s = 0.0

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        if chance.random() < 0.5:
            await ground.machines.drop_postgres()
        else:
            await ground.machines.kill(ground.machines.postgres)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        began_s = time.monotonic()
        await ground.machines.postgres.start()
        self._redo_s = max(self._redo_s, time.monotonic() - began_s)

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        return f"start with redo {self._redo_s:.2f} s"


class BackendsKilled(Nemesis):
    fault, what = "F10", "random Postgres backends terminated"
    rounds_short = 2
    lasts_s = (0.0, 0.3)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        url = ground.machines.superuser_url
        async with await connect(url, application="nemesis") as connection:
            pids = [row[0] for row in await fetch_all(connection, BACKENDS)]
            for pid in chance.sample(pids, max(1, len(pids) // 2)):
                await connection.execute(TERMINATE, {"pid": pid})


class Deadlock(Nemesis):
    fault, what = "F10", "deadlocks on the streams that appends lock"
    lasts_s = (0.0, 0.2)

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._first, self._last = sorted(account.stream for account in accounts[:2])

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        """Appends lock by name; we lock the later name, wait until one of them waits for us, and
        then want the earlier.
        """
        url = ground.machines.superuser_url
        async with await connect(url, application="nemesis") as connection:
            await connection.execute(PATIENT)
            async with connection.transaction():
                await connection.execute(TOUCH, {"stream": self._last})
                await self._until_somebody_waits(connection)
                await connection.execute(TOUCH, {"stream": self._first})

    async def _until_somebody_waits(self, connection: psycopg.AsyncConnection) -> None:
        async with asyncio.timeout(10):
            while True:
                ((waiting,),) = await fetch_all(connection, WAITING)
                if waiting:
                    return
                await asyncio.sleep(0.01)


class ValkeyGone(Nemesis):
    fault, what = "F12", "Valkey emptied, killed, asleep"
    rounds_short = 3
    lasts_s = (0.3, 0.8)

    def __init__(self) -> None:
        self._kinds: list[str] = []
        self._kind = ""
        self._calls: list[Call] = []

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._calls = load.calls

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        return unnoticed(self._calls)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        self._kinds = self._kinds or chance.sample(("emptied", "killed", "asleep"), 3)
        self._kind = self._kinds.pop()
        valkey = ground.machines.valkey
        match self._kind:
            case "emptied":
                async with redis.from_url(valkey.url()) as client:
                    await client.flushall()
            case "killed":
                await ground.machines.kill(valkey)
            case _:
                assert valkey.pid is not None
                pause_tree(valkey.pid)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        valkey = ground.machines.valkey
        if self._kind == "killed":
            await valkey.start()
        elif self._kind == "asleep":
            assert valkey.pid is not None
            resume_tree(valkey.pid)


class KafkaKilled(Nemesis):
    fault, what = "F13", "Kafka killed and back"
    needs_kafka = True
    rounds_short = 1
    weight = 5
    lasts_s = (2.0, 3.0) if asked_rounds() is None else (10.0, 60.0)

    def __init__(self) -> None:
        self._calls: list[Call] = []

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._calls = load.calls

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        assert ground.broker is not None
        ground.broker.kill()
        await load.until_answered(4)
        async with httpx.AsyncClient(trust_env=False) as client:
            health = await client.get(f"{ground.api_a.url}/health", timeout=10)
        assert health.status_code == 200, f"the site is ready without Kafka: {health.text}"

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        assert ground.broker is not None
        await ground.broker.begin()

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        return unnoticed(self._calls)


class KafkaWiped(KafkaKilled):
    fault, what = "F14", "Kafka comes back empty"
    long_only = True
    lasts_s = (0.0, 0.5)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        assert ground.broker is not None
        await asyncio.to_thread(ground.broker.wipe)

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        events = sum(balance.version for balance in verdict.books.balances.values())
        said = await super().finish(ground, verdict)
        return f"{said}; {events} ledger events filled again from the table"


class OffsetsRewound(Nemesis):
    fault, what = "F15", "every consumer group set back to its beginning"
    needs_kafka = True
    rounds_short = 1
    weight = 2
    lasts_s = (0.0, 0.2)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        assert ground.broker is not None
        # A group is rewound while it has no members.
        await asyncio.to_thread(ground.projector.end)
        for projection in PROJECTIONS:
            await _rewind(ground.broker.bootstrap, f"suanpan.{projection.name}")

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        await ground.projector.start()


class Rebuilt(Nemesis):
    fault, what = "F29", "a projection rebuilt while live"
    rounds_short = 1
    lasts_s = (0.0, 0.0)

    def __init__(self) -> None:
        self._events = 0
        self._events_per_s = 0

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        name = chance.choice(PROJECTIONS).name
        done = await command(ground.environment, "projection", "rebuild", name)
        self._events += done["events"]
        self._events_per_s = done["events_per_s"]

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        return f"{self._events} events folded, at {self._events_per_s} a second"


def unnoticed(calls: list[Call]) -> str:
    """Says so, or raises: every call was answered, or its account had no points left."""
    hurt = [
        call
        for call in calls
        if call.ending is not Ending.ANSWERED and call.status != InsufficientPoints.status
    ]
    assert not hurt, hurt
    return f"none of {len(calls)} calls noticed"


async def _rewind(bootstrap: str, group: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        kept = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        places = [TopicPartition(place.topic, place.partition) for place in kept]
        consumer.assign(places)
        await consumer.commit(dict.fromkeys(places, 0))
    finally:
        await consumer.stop()
