"""`runtime.json`: found while its process runs, and only then."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from backend.kit.embedded.children import bound_log, log_since
from backend.kit.runtime_file import Runtime, read_runtime, remove_runtime, write_runtime

_HERE = Runtime(os.getpid(), "http://127.0.0.1:1", "postgresql://a:pw@h/d", "", "redis://:pw@h/0")


def test_a_running_site_is_found_and_its_file_is_private(tmp_path: Path) -> None:
    write_runtime(tmp_path, _HERE)
    found = read_runtime(tmp_path)
    assert found is not None
    assert (found.url, found.redis_url) == (_HERE.url, _HERE.redis_url)
    assert stat.S_IMODE((tmp_path / "runtime.json").stat().st_mode) == 0o600
    assert "pw" not in repr(found)


def test_no_file_no_folder_and_no_sense_all_mean_not_running(tmp_path: Path) -> None:
    assert read_runtime(tmp_path) is None
    assert read_runtime(tmp_path / "none") is None
    (tmp_path / "runtime.json").write_text("{")
    assert read_runtime(tmp_path) is None


def test_a_site_whose_process_ended_is_not_running_even_as_a_zombie(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    write_runtime(tmp_path, msgspec.structs.replace(_HERE, pid=child.pid))
    assert read_runtime(tmp_path) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read_runtime(tmp_path) is None
    child.wait()
    assert read_runtime(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc start times")
def test_a_reused_pid_is_not_the_site(tmp_path: Path) -> None:
    write_runtime(tmp_path, _HERE)
    file = tmp_path / "runtime.json"
    content = json.loads(file.read_text())
    content["started_ticks"] -= 1
    file.write_text(json.dumps(content))
    assert read_runtime(tmp_path) is None


def test_a_site_removes_its_own_file_and_no_successors(tmp_path: Path) -> None:
    write_runtime(tmp_path, _HERE)
    remove_runtime(tmp_path, _HERE.pid + 1)
    assert read_runtime(tmp_path) is not None
    remove_runtime(tmp_path, _HERE.pid)
    assert not (tmp_path / "runtime.json").exists()


def test_a_servers_log_is_bounded_while_the_server_keeps_it_open(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, b"x" * (5 * 1024 * 1024))
        bound_log(log)
        os.write(descriptor, b"after\n")
    finally:
        os.close(descriptor)
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "server.log.1").stat().st_size == 5 * 1024 * 1024
    assert log_since(log, 0) == "after"
