"""The disk under Postgres fills up under load, and is emptied again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from random import Random

import pytest

from tests.embedded_site import open_folder
from tests.faults.figures import Report
from tests.faults.ground import Ground
from tests.faults.load import Load, Returned
from tests.faults.nemesis import Nemesis, run_fault
from tests.faults.verdict import Verdict

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.fault("F23")]

DISK_MB = 320
REFUSALS = 2
FILLER_BYTES = 1 << 20


@contextlib.contextmanager
def small_disk(folder: Path) -> Generator[Path]:
    """A file system of its own, full when a few hundred megabytes are written."""
    place = folder / "disk"
    place.mkdir()
    options = f"size={DISK_MB}m,mode=0711"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


class DiskFull(Nemesis):
    fault, what = "F23", "disk under Postgres full"
    rounds_short = 1
    weight = 4
    lasts_s = (0.5, 1.5)

    def __init__(self, place: Path) -> None:
        self._filler = place / "filler"
        self._fell = 0

    async def inject(self, ground: Ground, load: Load, chance: Random) -> None:
        refused = sum(call.returned is Returned.FAIL for call in load.calls)
        with self._filler.open("wb", buffering=0) as filler:
            _fill(filler.fileno())
        await load.until_refused(refused + REFUSALS)

    async def heal(self, ground: Ground, load: Load, chance: Random) -> None:
        self._filler.unlink()
        postgres = ground.machines.postgres
        if postgres.exited() is not None:
            self._fell += 1
            await postgres.start()

    async def finish(self, ground: Ground, verdict: Verdict) -> str:
        return f"Postgres fell {self._fell} times, and stood again when there was space"


def _fill(descriptor: int) -> None:
    """To the last byte: what is written a little at a time fails where much would not fit."""
    size = FILLER_BYTES
    while size:
        try:
            os.write(descriptor, bytes(size))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size //= 16


async def test_a_full_disk_refuses_and_loses_nothing(chance: Random, report: Report) -> None:
    with open_folder() as folder, small_disk(folder) as place:
        async with Ground(folder, None, servers_place=place) as ground:
            await run_fault(DiskFull(place), ground, chance, report)
