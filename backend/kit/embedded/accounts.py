"""Which user the servers run as, and what that user can reach.

Must not change the mode or owner of a folder that is not ours.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import msgspec

from schemas.errors import SiteProblem

_UNPRIVILEGED = "nobody"


class Account(msgspec.Struct, frozen=True):
    """A system user the servers run as. `drops`: we are root and become that user first."""

    uid: int
    gid: int
    name: str
    drops: bool


def server_account(existing: Path) -> Account:
    """Ourselves, or as root the owner of `existing` server data, or `nobody`.

    PostgreSQL refuses to run as root, and initdb refuses a uid without a passwd entry.
    Raises SiteProblem for such a uid.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), _name_of(os.geteuid()), drops=False)
    owner = existing.stat().st_uid if existing.exists() else 0
    entry = _entry_of(owner) if owner != 0 else _nobody()
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, drops=True)


def reaches(account: Account, path: Path) -> bool:
    """Whether `account` may enter `path` (or run it, if it is a file), by owner and mode bits."""
    resolved = path.resolve()
    return all(_may_enter(account, step) for step in (resolved, *resolved.parents))


def give(account: Account, folder: Path) -> None:
    """Make `folder`, ours, and hand it to `account` alone (0700). Raises OSError or SiteProblem."""
    folder.mkdir(mode=0o700, parents=False, exist_ok=True)
    if account.drops:
        try:
            os.chown(folder, account.uid, account.gid)
        except PermissionError as error:
            raise SiteProblem(
                f"This root may not hand {folder} to the user {account.name} (a container "
                "without CAP_CHOWN and CAP_SETUID?). Run as a normal user, or set DATABASE_URL "
                "and REDIS_URL."
            ) from error
    folder.chmod(0o700)


def _may_enter(account: Account, path: Path) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _name_of(uid: int) -> str:
    return _entry_of(uid).pw_name


def _entry_of(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise SiteProblem(
            f"The user id {uid} has no entry in /etc/passwd, which the embedded PostgreSQL "
            "needs. Run as a named user, or set DATABASE_URL."
        ) from error


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_UNPRIVILEGED)
    except KeyError as error:
        raise SiteProblem(
            "There is no user `nobody`, which the embedded servers run as when started by root. "
            "Run as a normal user, or set DATABASE_URL and REDIS_URL."
        ) from error
