"""Faults of processes: killed at random and at exact moments, stopped, asleep, out of time or of
descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from random import Random
from urllib.parse import urlsplit

import httpx
import psutil

from tests.faults.books import open_leases, until_ended
from tests.faults.gateway import kafka_request, saying
from tests.faults.ground import Ground
from tests.faults.load import Call, Ending, Load
from tests.faults.nemesis import Nemesis
from tests.faults.roles import Role
from tests.faults.site import Account
from tests.faults.verdict import Verdict
from tests.upstream import Seen

MOMENT_TIMEOUT_S = 20.0
HOUR_US = 3_600_000_000


def tell_nobody(what: str, seen: Seen) -> None:
    """For `FakeUpstream.tell`, when nothing is waited for any more."""
    del what, seen


class KilledMidStream(Nemesis):
    fault, what = "F3", "API killed at a random moment of its calls"
    rounds_short = 2
    lasts_s = (0.0, 0.2)
    signs = ("arrived", "chunk", "reported")

    def __init__(self) -> None:
        self._role: Role | None = None

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        self._role = chance.choice((ground.api_a, ground.api_b))
        left, reached = chance.randint(1, 12), asyncio.Event()
        sign = chance.choice(self.signs)

        def tell(what: str, seen: Seen) -> None:
            nonlocal left
            del seen
            left -= what == sign
            if left <= 0:
                reached.set()

        ground.upstream.tell = tell
        async with asyncio.timeout(MOMENT_TIMEOUT_S):
            await reached.wait()
        ground.upstream.tell = tell_nobody
        await asyncio.sleep(chance.uniform(0, 0.02))
        self._role.kill()

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        assert self._role is not None
        await self._role.start()


class Moment(Nemesis):
    """Kills the first API at an exact moment of one call, which its client then repeats."""

    rounds_short = 1
    lasts_s = (0.0, 0.0)
    retried = (Ending.ANSWERED,)
    """How the repeated call may end."""

    def __init__(self) -> None:
        self._killed = asyncio.Event()
        self._account: Account | None = None
        self._round = 0
        self._calls_sent = 0
        self._orphans: set[str] = set()

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._account = accounts[0]
        self._calls_sent = sum(seen.json["model"] == "victim" for seen in ground.upstream.seen)

    def arm(self, ground: Ground) -> None:
        raise NotImplementedError

    def kill(self, ground: Ground) -> None:
        ground.upstream.tell = tell_nobody
        ground.api_a.kill()
        self._killed.set()

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        self._round += 1
        self._killed.clear()
        self.arm(ground)
        first = await self._call(ground)
        async with asyncio.timeout(MOMENT_TIMEOUT_S):
            await self._killed.wait()
        self._orphans = await open_leases(ground.database_url)
        assert first.ending is Ending.BROKEN, first

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        await ground.api_a.start()
        await until_ended(ground.database_url, self._orphans)
        again = await self._call(ground)
        assert again.ending in self.retried, again
        # The load's calls went on meanwhile: what counts is that this one was sent at most twice.
        load.calls.append(again)

    async def _call(self, ground: Ground) -> Call:
        assert self._account is not None
        command = f"{self.fault}-{self._round}-{self._account.stream}"
        call = Call(self._account, "victim", streamed=False, command=command)
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            await call.make(client, ground.api_a.url)
        return call

    def victims(self, ground: Ground) -> int:
        """How often the provider was asked for what this fault's calls wanted."""
        asked = sum(seen.json["model"] == "victim" for seen in ground.upstream.seen)
        return asked - self._calls_sent


class KilledBeforeHold(Moment):
    fault, what = "F1", "API killed before its hold commits"

    def arm(self, ground: Ground) -> None:
        ground.gate_a.on_sent(saying(b'"PointsHeld"'), lambda: self.kill(ground), forward=False)

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        assert self.victims(ground) == self._round, "each was sent once: by its repetition"
        return "the repeated call was sent and charged once"


class KilledAfterHold(Moment):
    fault, what = "F2", "API killed after the hold, before the provider answers"

    def arm(self, ground: Ground) -> None:
        def tell(what: str, seen: Seen) -> None:
            if what == "arrived" and seen.json["model"] == "victim" and not self._killed.is_set():
                self.kill(ground)

        ground.upstream.tell = tell

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        assert self.victims(ground) == 2 * self._round
        return "the hold was released by the sweep, the repeated call charged once"


class KilledBeforeSettlement(Moment):
    fault, what = "F4", "API killed when the provider has ended, before the settlement commits"

    def arm(self, ground: Ground) -> None:
        def tell(what: str, seen: Seen) -> None:
            if what == "reported" and seen.json["model"] == "victim":
                ground.gate_a.on_sent(
                    saying(b'"HoldSettled"'), lambda: self.kill(ground), forward=False
                )

        ground.upstream.tell = tell

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        assert self.victims(ground) <= 2 * self._round
        return f"{self.victims(ground) - self._round} duplicate provider calls, none charged twice"


class OffsetLost(Nemesis):
    fault, what = "F5", "projector killed after its commit, before Kafka has the offset"
    needs_kafka = True
    rounds_short = 1
    lasts_s = (0.0, 0.1)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        killed = asyncio.Event()

        def kill() -> None:
            ground.projector.kill()
            killed.set()

        ground.gate_kafka.on_sent(kafka_request(8), kill, forward=False)
        async with asyncio.timeout(MOMENT_TIMEOUT_S):
            await killed.wait()

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        await ground.projector.start()


class ProjectorKilled(Nemesis):
    fault, what = "F6", "projector killed mid-batch"
    long_only = True
    lasts_s = (0.0, 0.3)

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        await asyncio.sleep(chance.uniform(0, 0.6))
        ground.projector.kill()

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        await ground.projector.start()


class AskedToStop(Nemesis):
    fault, what = "F7", "API asked to stop under load"
    rounds_short = 1
    lasts_s = (0.0, 0.1)

    def __init__(self) -> None:
        self._role: Role | None = None
        self._drain_s = 0.0
        self._under_way: list[Call] = []

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        self._role = chance.choice((ground.api_a, ground.api_b))
        self._under_way += [call for call in load.in_flight if call.status == 200]
        began_s = asyncio.get_running_loop().time()
        self._role.ask_to_stop()
        assert await self._role.ended() == 0
        self._drain_s = max(self._drain_s, asyncio.get_running_loop().time() - began_s)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        assert self._role is not None
        await self._role.start()

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        dropped = [call for call in self._under_way if call.ending is not Ending.ANSWERED]
        assert not dropped, dropped
        return f"drained in {self._drain_s:.1f} s, {len(self._under_way)} begun, 0 dropped"


class Asleep(Nemesis):
    fault, what = "F8", "API asleep past its leases, others at random"
    rounds_short = 1
    lasts_s = (2.6, 3.2)

    def __init__(self) -> None:
        self._asleep: list[Role] = []

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        self._asleep = [chance.choice((ground.api_a, ground.api_b))]
        others = [role for role in ground.roles if role not in (ground.api_a, ground.api_b)]
        self._asleep += [role for role in others if chance.random() < 0.3]
        for role in self._asleep:
            role.pause()

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        for role in self._asleep:
            role.resume()

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        late = sum(len(request.late) for request in verdict.books.requests.values())
        return f"{late} settlements came late and were no second outcome"


class ClockJumps(Nemesis):
    fault, what = "F25", "one API's clock an hour ahead, behind, standing still"
    rounds_short = 3
    lasts_s = (0.4, 0.8)
    ages_count = False

    def __init__(self) -> None:
        self._kinds: list[str] = []

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        if not self._kinds:
            self._kinds = ["ahead", "behind", "still"]
            chance.shuffle(self._kinds)
        match self._kinds.pop():
            case "ahead":
                ground.clock.run(HOUR_US)
            case "behind":
                ground.clock.run(-HOUR_US)
            case _:
                ground.clock.freeze()
        await load.until_answered(4)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        ground.clock.run()


class NoDescriptors(Nemesis):
    fault, what = "F26", "API without free file descriptors, many connections at its door"
    rounds_short = 1
    lasts_s = (0.5, 1.0)
    connections = 40

    def __init__(self) -> None:
        self._before = (0, 0)
        self._open: list[socket.socket] = []

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        role = ground.api_a
        self._before = resource.prlimit(role.pid, resource.RLIMIT_NOFILE)
        used = psutil.Process(role.pid).num_fds()
        limit = (used + chance.randint(1, 4), self._before[1])
        resource.prlimit(role.pid, resource.RLIMIT_NOFILE, limit)
        place = urlsplit(role.url)
        for _ in range(self.connections):
            connection = socket.socket()
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.connect((place.hostname, place.port))
            self._open.append(connection)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()
        resource.prlimit(ground.api_a.pid, resource.RLIMIT_NOFILE, self._before)
        await ground.api_a.until_ready()
