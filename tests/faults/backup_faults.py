"""The machine with Postgres is lost; an older backup takes its place, and Kafka gives the rest."""

from __future__ import annotations

import asyncio
import shutil
import time
from random import Random

from psycopg import sql

from backend.journal.reader import site_of
from backend.kit.postgres import connect, fetch_all
from tests.faults.books import command
from tests.faults.ground import Ground
from tests.faults.load import Load
from tests.faults.machines import give_to_server, put_in_place
from tests.faults.nemesis import Nemesis
from tests.faults.site import Account
from tests.faults.verdict import Verdict, until_drained

RELOAD = "SELECT pg_reload_conf()"
NOW = "SELECT clock_timestamp()::text"
SWITCH = "SELECT pg_walfile_name(pg_switch_wal())"
ARCHIVED = "SELECT last_archived_wal FROM pg_stat_archiver"
CLOSED_TIMEOUT_S = 30.0


class BackupRestored(Nemesis):
    fault, what = (
        "F31",
        "Postgres lost, a backup restored to an earlier moment, recovered from Kafka",
    )
    long_only = True
    needs_kafka = True
    rounds_short = 1
    weight = 10
    lasts_s = (0.0, 0.0)

    def __init__(self) -> None:
        self._imported = 0
        self._lost_at_s = 0.0
        self._served_after_s = 0.0

    async def prepare(self, ground: Ground, load: Load, accounts: tuple[Account, ...]) -> None:
        self._backup = ground.folder / "backup"
        self._archive = ground.folder / "archive"

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        moment = await self._back_up(ground, load, chance)
        # What was answered and not yet sent to Kafka would be lost: at rest, nothing is.
        load.up.clear()
        await load.until_idle()
        await until_drained(ground)
        self._lost_at_s = time.monotonic()
        await ground.machines.kill(ground.machines.postgres)
        for role in ground.roles:
            role.kill()
        self._lay_back(ground, moment)

    async def _back_up(self, ground: Ground, load: Load, chance: Random) -> str:
        """A base backup and the WAL after it; the moment to which it shall be restored."""
        machines = ground.machines
        for folder in (self._backup, self._archive):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            give_to_server(machines, folder)
        async with await connect(machines.superuser_url, application="nemesis") as connection:
            archiving = sql.Literal(f"cp %p {self._archive}/%f")
            await connection.execute(
                sql.SQL("ALTER SYSTEM SET archive_command = {}").format(archiving)
            )
            await connection.execute(RELOAD)
            words = ("-d", machines.superuser_url, "-D", str(self._backup), "-X", "stream")
            await asyncio.to_thread(machines.run, "pg_basebackup", *words, "-c", "fast")
            await load.until_answered(chance.randint(4, 12))
            ((moment,),) = await fetch_all(connection, NOW)
            await load.until_answered(chance.randint(4, 12))
            ((last,),) = await fetch_all(connection, SWITCH)
            async with asyncio.timeout(20):
                while await fetch_all(connection, ARCHIVED) < [(last,)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        return str(moment)

    def _lay_back(self, ground: Ground, moment: str) -> None:
        with (self._backup / "postgresql.auto.conf").open("a") as config:
            config.write(
                f"\nrestore_command = 'cp {self._archive}/%f %p'\n"
                f"recovery_target_time = '{moment}'\nrecovery_target_action = 'promote'\n"
                "archive_command = '/bin/true'\n"
            )
        (self._backup / "recovery.signal").touch()
        give_to_server(ground.machines, self._backup)
        put_in_place(ground.machines, self._backup)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        await self._recover(ground)
        await ground.machines.postgres.start()
        # The publisher alone, until it has seen that Kafka is ahead: nothing may be written before.
        ground.publisher.spawn()
        await self._until_closed(ground)
        done = await command(ground.environment, "recover")
        self._imported += done["events"]
        others = [role for role in ground.roles if role is not ground.publisher]
        await asyncio.gather(ground.publisher.until_ready(), *(role.start() for role in others))
        load.up.set()
        await load.until_answered(1)
        self._served_after_s = max(self._served_after_s, time.monotonic() - self._lost_at_s)

    async def _recover(self, ground: Ground) -> None:
        """Replays the archive up to the moment, on its own: the site's start wants to write."""
        machines = ground.machines
        log, data = str(self._archive / "recovery.log"), str(machines.data)
        options = f"-p {machines.postgres.port} -c listen_addresses=127.0.0.1"
        options += f" -c unix_socket_directories={self._archive}"
        run = ("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
        await asyncio.to_thread(machines.run, *run)
        try:
            await self._until_promoted(ground)
        finally:
            stop = ("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")
            await asyncio.to_thread(machines.run, *stop)

    async def _until_promoted(self, ground: Ground) -> None:
        async with asyncio.timeout(CLOSED_TIMEOUT_S):
            while True:
                url = ground.machines.superuser_url
                async with await connect(url, application="nemesis") as connection:
                    if await fetch_all(connection, "SELECT pg_is_in_recovery()") == [(False,)]:
                        return
                await asyncio.sleep(0.05)

    async def _until_closed(self, ground: Ground) -> None:
        async with (
            asyncio.timeout(CLOSED_TIMEOUT_S),
            await connect(ground.database_url, application="test") as connection,
        ):
            while (await site_of(connection))[2] is None:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        assert self._imported > 0, "the backup lacked nothing: Kafka was not needed"
        return (
            f"{self._imported} events that the backup lacked came from Kafka, 0 lost; "
            f"served again {self._served_after_s:.1f} s after the loss"
        )
