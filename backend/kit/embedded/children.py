"""Server processes: started so that they die with us, found again, ended, their logs bounded.

Must not end a process that is not a server on a folder of ours.

PR_SET_PDEATHSIG fires when the *thread* that forked ends, not the process (prctl(2)). `spawn` must
therefore run in the main thread, which lives as long as the process; it refuses any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.kit.embedded.accounts import Account
from schemas.errors import SiteProblem

PID_FILES = {"postgres": "postmaster.pid", "valkey-server": "valkey.pid"}
"""What each server writes into its data folder."""
HAS_PROC = Path("/proc/self/cwd").exists()
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.01
_LOG_BYTES_MAX = 4 * 1024 * 1024
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 6


class ChildFailed(SiteProblem):
    """A server could not be started or did not become ready; the sentence ends with its log."""


def failed(what: str, log: Path, start: int) -> ChildFailed:
    """What to tell of a server that failed, with what it wrote to `log` after byte `start`."""
    lines = log_since(log, start)
    cause = "The disk is full. " if "No space left on device" in lines else ""
    return ChildFailed(f"{cause}{what} Its log ({log}) says:\n{lines}")


def spawn(
    command: Sequence[str | Path],
    account: Account,
    log: Path,
    *,
    death_signal: signal.Signals,
    stdin: bytes = b"",
) -> subprocess.Popen[bytes]:
    """Start a server as `account`, in a session of its own, output appended to `log`.

    It gets `death_signal` from the kernel when our main thread ends, however that comes (Linux).
    Raises ChildFailed if it cannot be executed.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("servers are started from the main thread only: see this module's text")
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd="/",
                # Nothing of ours (SECRET, URLs) belongs into a server's environment.
                env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"},
                start_new_session=True,
                # One system call, looked up beforehand: safe after a fork with threads about.
                preexec_fn=_die_with(death_signal),  # noqa: PLW1509
                user=account.uid if account.drops else None,
                group=account.gid if account.drops else None,
                extra_groups=[] if account.drops else None,
                umask=0o077,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise ChildFailed(
            f"{command[0]} could not be started as the user {account.name}: {error}. "
            "Put that right, or set DATABASE_URL and REDIS_URL."
        ) from error
    assert process.stdin is not None
    with process.stdin as pipe:
        _feed(pipe.fileno(), stdin)
    return process


def _feed(descriptor: int, content: bytes) -> None:
    """Write a few hundred bytes; a pipe holds at least 4 KiB, so this cannot block."""
    if content:
        # Should it be gone already, whoever waits for it says why.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, content)


def _die_with(death_signal: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None  # Elsewhere an orphan is found and ended at the next start.
    # Looked up before the fork: the child may not load libraries.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent, wanted = os.getpid(), int(death_signal)

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, wanted, 0, 0, 0)
        if os.getppid() != parent:  # We died between fork and prctl: no signal would come.
            os._exit(1)

    return prepare


async def wait_exit(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """The exit code, or None if it still runs after `timeout_s`. Reaps it."""
    deadline = time.monotonic() + timeout_s
    # A process outside has no event to await that works on every loop and system.
    while (code := process.poll()) is None and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
    return code


async def end(
    process: subprocess.Popen[bytes], steps: Sequence[tuple[signal.Signals, float]]
) -> None:
    """Send each signal and wait its seconds, until the process has exited; SIGKILL at last."""
    for number, patience_s in (*steps, (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        await wait_exit(process, patience_s)


def servers_in(folder: Path, program: str) -> list[int]:
    """Pids of live servers named `program` on the data folder `folder`. Zombies do not count."""
    return _by_working_folder(folder, program) if HAS_PROC else _by_pid_file(folder, program)


def _by_working_folder(folder: Path, program: str) -> list[int]:
    """Both servers change into their data folder; a zombie has none, nor has a reused pid ours."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = (entry / "comm").read_text().strip()
            if name == program and Path(os.readlink(entry / "cwd")) == folder:
                found.append(int(entry.name))
        except OSError:
            continue  # Gone, a zombie, or another user's.
    return found


def _by_pid_file(folder: Path, program: str) -> list[int]:
    """Where there is no /proc: the pid that the server wrote down, if it is still that program."""
    pid = first_int(folder / PID_FILES[program])
    if pid is None:
        return []
    command = ["ps", "-p", str(pid), "-o", "stat=,comm="]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False
        ).stdout.split(maxsplit=1)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lives = len(shown) == 2 and not shown[0].startswith("Z")
    return [pid] if lives and Path(shown[1].strip()).name == program else []


def first_int(file: Path) -> int | None:
    """The number on the first line of a pid file; None if there is none."""
    try:
        return int(file.read_text().partition("\n")[0])
    except (OSError, ValueError):
        return None


async def end_leftovers(
    folder: Path, program: str, leader: int | None, polite: signal.Signals, patience_s: float
) -> None:
    """End servers that an earlier process of ours left on `folder`.

    The caller holds the data folder's lock, so whatever still runs there is an orphan. `leader`
    (None: each) gets `polite`; what remains after `patience_s` is killed. Raises ChildFailed.
    """
    living = servers_in(folder, program)
    for pid in living:
        if leader is None or pid == leader:
            _signal(pid, polite)
    deadline = time.monotonic() + patience_s
    while living and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S * 2)
        living = servers_in(folder, program)
    for pid in living:
        _signal(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while living := servers_in(folder, program):
        if time.monotonic() > deadline:
            raise ChildFailed(f"An old {program} (pid {living[0]}) on {folder} does not end.")
        await asyncio.sleep(_POLL_S * 2)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def bound_log(log: Path) -> None:
    """Keep a server's log small: beyond 4 MiB it becomes `<log>.1` and starts anew.

    Copied and cut, not renamed: the server keeps the file open, in append mode.
    """
    try:
        if log.stat().st_size > _LOG_BYTES_MAX:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        return


def log_size(log: Path) -> int:
    """Bytes written so far: where a new attempt's lines begin."""
    return log.stat().st_size if log.exists() else 0


def log_since(log: Path, start: int) -> str:
    """The last lines written to `log` after byte `start`, for an error's sentence."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])
