"""What `suanpan serve` with its embedded Postgres and Valkey keeps in memory when nobody calls."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from bench.children import BenchmarkProblem, running
from bench.meter import Meter
from bench.options import Options
from bench.processes import descendants, name_of, pss_kb
from bench.rows import Figure, Row, at_most
from bench.site import free_port, wait_until_ready

IDLE_MB: Final = at_most(250)
COMMAND: Final = Path(".venv") / "bin" / "suanpan"
SITE_VARIABLES: Final = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "SECRET")


async def idle_rows(folder: Path, options: Options) -> list[Row]:
    """A site of its own in `folder`, started by the command as an operator does."""
    port = free_port()
    words = [str(COMMAND), "serve", "--port", str(port), "--data-dir", str(folder / "idle")]
    place = {"EMBEDDED_PLACE": str(folder / "idle-place"), "LOG_LEVEL": "warning"}
    given = dict.fromkeys((*SITE_VARIABLES, "KAFKA_BOOTSTRAP_SERVERS"), "")
    async with running(words, env=given | place, log=folder / "idle.log") as process:
        await wait_until_ready(f"http://127.0.0.1:{port}", process)
        meter = Meter({"serve": [process.pid]})
        before = meter.read()
        await asyncio.sleep(options.idle_s)
        spent = meter.since(before)
        kb: dict[str, int] = {}
        for pid in descendants(process.pid):
            kb[name_of(pid)] = kb.get(name_of(pid), 0) + pss_kb(pid)
    if not kb or not all(kb.values()):
        raise BenchmarkProblem(f"user {os.getuid()} may not read the memory of {sorted(kb)}")
    figures = [Figure(name, size / 1024, "MB") for name, size in sorted(kb.items())]
    figures.append(Figure("all", sum(kb.values()) / 1024, "MB", IDLE_MB))
    figures.append(Figure("cpu", spent.groups_s["serve"] / spent.seconds * 100, "% of a core"))
    return [Row("idle serve", tuple(figures), others_share=spent.others_share)]
