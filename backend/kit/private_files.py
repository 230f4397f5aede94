"""Small files only their owner may read, written so that a crash leaves the old or the new.

Must not know what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from schemas.errors import SiteProblem


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by a 0600 file with `content`, durable when this returns.

    Raises SiteProblem when the folder cannot be written or the disk is full.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make names created, renamed or removed in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_data_dir(folder: Path) -> None:
    """Make a site's data folder if it is missing, and prove that we may write there.

    As root it can be entered (not listed) by others, for the embedded servers' user: every
    file in it is private by its own mode. Raises SiteProblem.
    """
    make_folder(folder, 0o711 if os.geteuid() == 0 else 0o700)


def make_folder(folder: Path, mode: int) -> None:
    """Make `folder` if it is missing (its parents as usual) and prove that we may write there."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            # Only a folder that is ours from birth gets its mode set.
            folder.chmod(mode)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError) -> SiteProblem:
    """What to tell the operator when `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SiteProblem(f"The disk is full: {path} was not written. Make room, start again.")
    return SiteProblem(
        f"{path} cannot be written ({error.strerror}). Give this user the right to write there, "
        "or choose another data folder with SUANPAN_DATA_DIR."
    )
