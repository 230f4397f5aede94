"""Where the servers' data lie: in the data folder, or as root where their user can reach it.

Must not move a place once chosen: it is kept in `parts.json`.
"""

from __future__ import annotations

import hashlib
from itertools import count
from pathlib import Path

import msgspec

from backend.kit.embedded.accounts import Account, reaches, server_account
from backend.kit.embedded.state import PartsState
from backend.kit.private_files import unwritable
from backend.kit.settings import Settings
from schemas.errors import SiteProblem


class Place(msgspec.Struct, frozen=True):
    folder: Path
    """Parent of `postgres/` and `valkey/`."""
    account: Account
    outside: bool
    """Not inside the data folder: the operator is told."""


def kept_place(settings: Settings, state: PartsState) -> Place:
    """The place of an existing site. Raises SiteProblem if it is gone or out of reach."""
    folder = Path(state.place) if state.place else settings.data_dir.resolve()
    if not folder.is_dir():
        raise SiteProblem(
            f"This site keeps its servers' data in {folder}, which is missing. Put it back; or "
            "begin an empty site with another SUANPAN_DATA_DIR."
        )
    account = server_account(_made_first(folder))
    if account.drops and not reaches(account, folder):
        raise SiteProblem(
            f"The user {account.name}, who runs this site's servers, can no longer enter {folder}. "
            f"Give it back the right to (chmod o+x on that folder and those above it)."
        )
    return Place(folder, account, outside=bool(state.place))


def choose_place(settings: Settings) -> Place:
    """The place of a new site: the data folder wherever the servers' user can enter it.

    Raises SiteProblem if servers' data without their `parts.json` are already there.
    """
    folder = settings.data_dir.resolve()
    account = server_account(_made_first(folder))
    if not account.drops or reaches(account, folder):
        if (folder / "postgres" / "data").exists():
            raise SiteProblem(
                f"{folder / 'postgres'} holds a database, but {folder / 'parts.json'} with its "
                "passwords is missing. Put that file back, or move the folder away."
            )
        return Place(folder, account, outside=False)
    return Place(_outside(settings, account), account, outside=True)


def programs_place(settings: Settings, account: Account) -> Path:
    """Make the folder where copies of programs go: only as root, only if the wheel is private."""
    return _open_folder(Path(settings.embedded.place), account)


def _made_first(folder: Path) -> Path:
    """What tells whose servers these are: the part that was made before."""
    return next((folder / p for p in ("postgres", "valkey") if (folder / p).exists()), folder / "-")


def _outside(settings: Settings, account: Account) -> Path:
    """A folder named after the data folder, of which no earlier site has made use."""
    parent = _open_folder(Path(settings.embedded.place), account)
    name = hashlib.sha256(str(settings.data_dir.resolve()).encode()).hexdigest()[:16]
    for number in count(1):
        # Left from a site whose data folder was deleted: not ours to open or to remove.
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return _open_folder(folder, account)
    raise AssertionError("count() ends")


def _open_folder(folder: Path, account: Account) -> Path:
    """Make `folder` (0711) if it is missing; refuse one that `account` cannot enter."""
    try:
        if not folder.exists():
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)
    except OSError as error:
        raise SiteProblem(
            f"{unwritable(folder, error).sentence} As root the embedded servers need such a "
            "place: set embedded.place, run as a normal user, or set DATABASE_URL and REDIS_URL."
        ) from error
    if not reaches(account, folder):
        raise SiteProblem(
            f"The user {account.name} cannot enter {folder} (embedded.place). Choose a folder "
            "whose parents are open to all (o+x)."
        )
    return folder
