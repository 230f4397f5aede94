"""A consumer process that kills itself around the commit of its second batch, as SIGKILL would."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

import psycopg

from backend.journal.consumer import Arrived
from backend.journal.kafka_transport import KafkaTransport
from backend.journal.tail import TableTail
from backend.journal.wake import LogWatch
from backend.kit.postgres import Connection, make_pool
from tests.integration.log_writing import RANDOMNESS
from tests.integration.transport_ground import NoteTaker

COUNT = "SELECT count(*) FROM read.notes"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_when_committed(url: str, committed_before: int) -> None:
    """From a thread: the loop goes on, and may or may not tell Kafka before we are gone."""
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(COUNT).fetchone()
            if row is not None and row[0] > committed_before:
                _die()
            time.sleep(0.0005)


class DyingNoteTaker(NoteTaker):
    """Dies inside its second batch's transaction, or as soon as that is committed."""

    def __init__(self, url: str, moment: str) -> None:
        super().__init__()
        self._url = url
        self._moment = moment
        self._batches = 0

    async def handle(self, connection: Connection, batch: Sequence[Arrived]) -> None:
        committed = self.handled
        await super().handle(connection, batch)
        self._batches += 1
        if self._batches < 2:
            return
        if self._moment == "before":
            _die()
        threading.Thread(target=_die_when_committed, args=(self._url, committed)).start()


async def run(url: str, bootstrap: str, moment: str) -> None:
    watch = LogWatch(url)
    watch.start()
    consumer = DyingNoteTaker(url, moment)
    async with make_pool(url, application="member", size_max=4) as pool:
        transport = (
            KafkaTransport(pool, bootstrap, RANDOMNESS, [consumer])
            if bootstrap
            else TableTail(pool, watch, RANDOMNESS, [consumer])
        )
        transport.start()
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:4]))
