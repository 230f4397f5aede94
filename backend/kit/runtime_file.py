"""`<data>/runtime.json`: where a running site is, for the commands beside it.

Must not be trusted after its process is gone: a reader gets None then.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from backend.kit.private_files import write_private
from schemas.errors import SiteProblem

_NAME = "runtime.json"


class Runtime(msgspec.Struct, frozen=True):
    """What a command needs to talk to the running site. Holds passwords: the file is 0600."""

    pid: int
    url: str
    database_url: str
    database_owner_url: str
    redis_url: str
    started_ticks: int | None = None
    """Start time of `pid` in clock ticks since boot (proc(5)), None where /proc is missing."""

    def __repr__(self) -> str:
        return f"Runtime(pid={self.pid}, url={self.url!r})"


def process_start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None if the process is gone, a zombie, or there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in parentheses and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def write_runtime(data_dir: Path, runtime: Runtime) -> None:
    """Publish `runtime` atomically, with the start time of its process."""
    stamped = msgspec.structs.replace(runtime, started_ticks=process_start_ticks(runtime.pid))
    write_private(data_dir / _NAME, msgspec.json.encode(stamped))


def read_runtime(data_dir: Path) -> Runtime | None:
    """The running site, or None if none runs. A reused pid does not count as running.

    Raises SiteProblem if the file is there but may not be read by this user.
    """
    path = data_dir / _NAME
    try:
        runtime = msgspec.json.decode(path.read_bytes(), type=Runtime)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # Not written by us: a torn file cannot occur.
    except OSError as error:
        raise SiteProblem(
            f"{path} cannot be read ({error.strerror}). Run this command as the user who runs "
            "the site."
        ) from error
    return runtime if _runs(runtime) else None


def remove_runtime(data_dir: Path, pid: int) -> None:
    """Remove the file if it is still `pid`'s own: a successor's is left alone."""
    path = data_dir / _NAME
    try:
        runtime = msgspec.json.decode(path.read_bytes(), type=Runtime)
    except (OSError, msgspec.DecodeError):
        return
    if runtime.pid == pid:
        path.unlink(missing_ok=True)


def _runs(runtime: Runtime) -> bool:
    if Path("/proc/self/stat").exists():
        ticks = process_start_ticks(runtime.pid)
        return ticks is not None and ticks == runtime.started_ticks
    try:
        os.kill(runtime.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
