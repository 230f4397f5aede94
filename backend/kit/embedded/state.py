"""What the embedded servers keep between starts: place, ports, passwords; and the folder's lock.

Must not hold anything of the site's own.
"""

from __future__ import annotations

import base64
import fcntl
import os
import random
import socket
import time
from pathlib import Path

import msgspec

from backend.kit.clock import Randomness
from backend.kit.private_files import unwritable, write_private
from backend.kit.runtime_file import process_start_ticks
from schemas.errors import SiteProblem

_STATE = "parts.json"
_LOCK = "lock"
_DYING_TRIES, _DYING_PAUSE_S = 50, 0.1
# Below the range from which systems take outgoing ports (32768 on Linux, 49152 on macOS): a port
# that is kept must not be borrowed by some connection while the site is down.
_PORT_MIN, _PORT_MAX = 20_000, 31_999
_PORT_TRIES = 200


class PartsState(msgspec.Struct, frozen=True):
    """Content of `<data>/parts.json` (0600)."""

    superuser_password: str
    owner_password: str
    app_password: str
    valkey_password: str
    place: str = ""
    """Absolute folder of the servers' data; empty: the data folder itself."""
    postgres_port: int = 0
    valkey_port: int = 0
    postgres_made: bool = False
    """A database was made: if it is missing now, something is wrong."""

    def __repr__(self) -> str:
        return f"PartsState(place={self.place!r}, …)"


def new_state(randomness: Randomness, place: str) -> PartsState:
    def password() -> str:
        return base64.urlsafe_b64encode(randomness.bytes(24)).decode()

    return PartsState(password(), password(), password(), password(), place)


def read_state(data_dir: Path) -> PartsState | None:
    """None before the first start. Raises SiteProblem if it cannot be read or is damaged."""
    path = data_dir / _STATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=PartsState)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SiteProblem(f"{path} is damaged ({error}). Put a copy of it back.") from error
    except OSError as error:
        raise SiteProblem(
            f"{path} cannot be read ({error.strerror}). Run as the user who made the site."
        ) from error


def write_state(data_dir: Path, state: PartsState) -> None:
    write_private(data_dir / _STATE, msgspec.json.encode(state))


def kept_or_free_port(kept: int) -> int:
    """`kept` if free, else some free port of 127.0.0.1. Raises SiteProblem."""
    if kept and port_is_free(kept):
        return kept
    for _ in range(_PORT_TRIES):
        port = random.randint(_PORT_MIN, _PORT_MAX)  # noqa: S311 - not a secret
        if port_is_free(port):
            return port
    raise SiteProblem(
        f"No free port between {_PORT_MIN} and {_PORT_MAX} on 127.0.0.1 for the embedded servers. "
        "Free some, or set DATABASE_URL and REDIS_URL."
    )


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class DataDirInUse(SiteProblem):
    """Another process holds the data folder; the sentence names its pid."""


class DataDirLock:
    """One supervisor per data folder. The kernel frees the lock when its process ends."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock. Raises DataDirInUse."""
        path = data_dir / _LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unwritable(path, error) from error
        holder = self._taken_by()
        if holder is not None:
            os.close(self._descriptor)
            raise DataDirInUse(
                f"The data folder {data_dir} is in use by another suanpan (pid {holder or '?'}). "
                "Stop that one, or choose another folder with SUANPAN_DATA_DIR."
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _taken_by(self) -> str | None:
        """None once the lock is ours; else the pid that holds it.

        A child that was being started when its supervisor was killed holds the lock a moment longer
        than the supervisor: that is waited for.
        """
        holder = ""
        for _ in range(_DYING_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            else:
                return None
            if holder.isdigit() and process_start_ticks(int(holder)) is not None:
                return holder
            time.sleep(_DYING_PAUSE_S)
        return holder

    def release(self) -> None:
        # The file stays: removing it would let two holders lock two different files.
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
