"""Facts about the machine a measurement ran on, and whether others were using it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

PACKAGES: Final = ("uvloop", "uvicorn", "aiohttp", "httptools", "msgspec", "psycopg", "litestar")


class Machine(msgspec.Struct, frozen=True):
    system: str
    processor: str
    cores: int
    memory_mb: int
    python: str
    packages: dict[str, str]
    load_before: float
    """Load average over one minute when the benchmark began."""


def machine() -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        load_before=os.getloadavg()[0],
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
