"""A person is forgotten: what the log says then, what is gone, what stays, and who may not go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from backend.folds import ALL_FOLDS
from backend.forgetting import ERASERS, Eraser, Forgetting, Grounds
from backend.grants import GrantAsked
from backend.identity.person import Person
from backend.identity.service import KeyAsked
from backend.journal.reader import read_stream
from backend.journal.view import load_states
from backend.kit.clock import SystemClock
from backend.ledger.account import Account
from backend.ledger.exports import (
    ExportFolder,
    ExportFormat,
    ExportKind,
    add_export,
    list_exports,
)
from backend.ledger.record_filters import RecordQuery
from backend.opening import TRIAL_FILE, TRIAL_NAME
from projections.audit.run import AuditAsked, run_audit
from schemas.errors import Conflict, NotFound, SiteProblem
from schemas.identity import KeyRevoked, PersonForgotten
from schemas.ids import PersonId, account_stream, key_stream, person_stream
from schemas.money import UPT_PER_POINT, MicroPoints
from schemas.registry import decode
from tests.conftest import Database
from tests.integration.identity_site import Process, process_of, until
from tests.integration.test_cli_commands import Shell
from tests.site import ROOT, role_process

POINTS = MicroPoints(3 * UPT_PER_POINT)
PASSWORD = "correct horse 9"


def forgetting_of(site: Process, folder: Path, *more: Eraser) -> Forgetting:
    return Forgetting(site.writer, site.pool, site.identity, folder, (*ERASERS, *more))


async def account_of(site: Process, person: PersonId) -> Account:
    stream = account_stream(person)
    async with site.pool.connection() as connection:
        return (await load_states(connection, ALL_FOLDS, (stream,)))[stream][1]


async def last_event(site: Process, stream: str) -> object:
    async with site.pool.connection() as connection:
        return decode((await read_stream(connection, stream, 1))[-1])


async def anna_in(site: Process) -> PersonId:
    person = (await site.opening.open_person("Anna", PASSWORD)).person
    await site.grants.grant(GrantAsked(person, POINTS, "for the autumn"), actor="cli")
    return person


def rows(database: Database, table: str) -> list[int]:
    query = sql.SQL("SELECT account FROM {} WHERE account IS NOT NULL ORDER BY account")
    with psycopg.connect(database.app_url) as connection:
        return [row[0] for row in connection.execute(query.format(sql.Identifier(table)))]


async def test_a_forgotten_person_is_nobody_and_their_points_stay_in_the_books(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        person = await anna_in(site)
        keys = [await site.identity.create_key(person, KeyAsked(name=n)) for n in "ab"]
        await site.identity.revoke_key(keys[0].key, "cli")

        done = await forgetting_of(site, tmp_path).forget(person, "cli")

        assert (done.person, done.keys_revoked) == (person, 1)
        assert await last_event(site, person_stream(person)) == PersonForgotten("cli")
        assert await last_event(site, key_stream(keys[1].key)) == KeyRevoked("cli")
        assert await site.identity.state_of(person) == Person(forgotten=True)
        assert await site.identity.name_of(person) is None
        assert await site.identity.find("anna") is None
        assert await site.identity.check_password("anna", PASSWORD) is None
        assert await site.identity.data_keys.find(person) is None
        assert rows(database, "forgettings") == rows(database, "key_tombstones") == [person]
        assert (await account_of(site, person)).available_upt == POINTS
    report = await run_audit(AuditAsked(database.app_url), ALL_FOLDS)
    assert report.ok, report.first


async def test_nothing_can_be_done_for_who_was_forgotten(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        person = await anna_in(site)
        forgetting = forgetting_of(site, tmp_path)
        await forgetting.forget(person, "cli")
        with pytest.raises(NotFound):
            await site.identity.set_password(person, "another password")
        with pytest.raises(NotFound):
            await site.identity.create_key(person, KeyAsked())
        with pytest.raises(NotFound):
            await site.grants.grant(GrantAsked(person, POINTS, "too late"), actor="cli")
        with pytest.raises(NotFound):
            await forgetting.forget(person, "cli")
        with pytest.raises(NotFound):
            await forgetting.forget(PersonId(999_999), "cli")
        assert rows(database, "data_keys") == []


async def test_the_name_belongs_to_a_new_person_with_a_new_account(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        old = await anna_in(site)
        forgetting = forgetting_of(site, tmp_path)
        await forgetting.forget(old, "cli")
        new = (await site.opening.open_person("ANNA", "a new password")).person
        assert new != old
        assert await site.identity.find("anna") == new
        assert await site.identity.name_of(new) == "ANNA"
        assert (await account_of(site, new)).available_upt == 0
        assert await site.identity.check_password("anna", PASSWORD) is None
        await forgetting.finish(old)
        assert await site.identity.name_of(new) == "ANNA", "finishing again touched the new one"


async def test_the_last_administrator_is_not_forgotten(database: Database, tmp_path: Path) -> None:
    async with process_of(database.app_url) as site:
        first = (await site.opening.open_person("first", PASSWORD, administrator=True)).person
        forgetting = forgetting_of(site, tmp_path)
        with pytest.raises(Conflict, match="last administrator"):
            await forgetting.forget(first, "cli")
        second = (await site.opening.open_person("second", PASSWORD, administrator=True)).person
        await forgetting.forget(first, "cli")
        with pytest.raises(Conflict, match="last administrator"):
            await forgetting.forget(second, "cli")


async def test_of_administrators_who_forget_each_other_at_once_one_stays(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as one, process_of(database.app_url) as two:
        admins = [
            (await one.opening.open_person(f"admin {i}", PASSWORD, administrator=True)).person
            for i in range(4)
        ]
        answers = await asyncio.gather(
            *(
                forgetting_of(site, tmp_path).forget(admin, "cli")
                for admin, site in zip(admins, (one, two, one, two), strict=True)
            ),
            return_exceptions=True,
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        assert [type(failure) for failure in failures] == [Conflict]
        states = [await one.identity.state_of(admin) for admin in admins]
        assert [state.forgotten for state in states].count(False) == 1


async def test_the_trial_account_is_forgotten_with_its_file(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        assert await site.opening.open_empty_site(tmp_path)
        trial = await site.identity.require(TRIAL_NAME)
        await forgetting_of(site, tmp_path).forget(trial, "cli")
        assert not (tmp_path / TRIAL_FILE).exists()
        assert not await site.opening.open_empty_site(tmp_path)
        assert await site.identity.find(TRIAL_NAME) is None


async def test_keys_made_while_a_person_is_forgotten_end_too(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as one, process_of(database.app_url) as two:
        person = await anna_in(one)

        made = asyncio.Event()

        async def make_keys() -> None:
            while True:
                await two.identity.create_key(person, KeyAsked())
                made.set()

        making = asyncio.create_task(make_keys())
        await made.wait()
        forgetting = forgetting_of(one, tmp_path)
        await forgetting.forget(person, "cli")
        with pytest.raises(NotFound):
            await making
        await forgetting.finish(person)
        states = [state async for _, state in one.identity.list_keys(person)]
        assert states
        assert all(state.revoked for state in states)


async def test_one_that_cannot_be_erased_keeps_nobody_else_waiting(
    database: Database, tmp_path: Path
) -> None:
    broken: set[int] = set()

    async def erase(grounds: Grounds, person: PersonId, state: Person) -> None:
        if person in broken:
            raise SiteProblem("the disk is read-only")

    async with process_of(database.app_url) as site:
        forgetting = forgetting_of(site, tmp_path, Eraser("a file", erase))
        people = [(await site.opening.open_person(name, None)).person for name in ("a", "b", "c")]
        broken.update(people)
        for person in people:
            with pytest.raises(SiteProblem):
                await forgetting.forget(person, "cli")
        assert rows(database, "data_keys") == []
        broken -= {people[0], people[2]}
        assert await forgetting.finish_all() == 2
        assert rows(database, "forgettings") == [people[0], people[2]]
        broken.clear()
        assert await forgetting.finish_all() == 1
        assert await forgetting.finish_all() == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from backend.forgetting import ERASERS, Eraser, Forgetting
from tests.integration.identity_site import process_of

async def stop_here(grounds, person, state):
    print("here", flush=True)
    await asyncio.Event().wait()

async def main():
    url, name, place = sys.argv[1:]
    erasers = (*ERASERS[:int(place)], Eraser("stop", stop_here), *ERASERS[int(place):])
    async with process_of(url) as site:
        forgetting = Forgetting(site.writer, site.pool, site.identity, Path("."), erasers)
        await forgetting.forget(await site.identity.require(name), "cli")

asyncio.run(main())
"""


async def killed_while_forgetting(database: Database, name: str, place: int, folder: Path) -> None:
    """A process that forgets `name` is killed with SIGKILL before its eraser number `place`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, database.app_url, name, str(place),
        stdout=asyncio.subprocess.PIPE, cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while (line := await process.stdout.readline()) != b"here\n":
            assert line, "it ended by itself"
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def test_a_forgetting_that_was_killed_anywhere_is_finished_at_the_next_start(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        people = [
            (await site.opening.open_person(f"person {place}", None)).person
            for place in range(len(ERASERS) + 1)
        ]
        await site.opening.open_person("somebody else", None)
    for place in range(len(ERASERS) + 1):
        await killed_while_forgetting(database, f"person {place}", place, tmp_path)
    assert people[0] in rows(database, "data_keys")
    assert rows(database, "forgettings") == []

    async with role_process("worker", database, tmp_path):
        await until(lambda: rows(database, "forgettings") == people)
    assert not set(people) & set(rows(database, "data_keys"))
    async with process_of(database.app_url) as site:
        kept = await site.identity.require("somebody else")
        assert await site.identity.name_of(kept) == "somebody else"
        for person in people:
            assert await site.identity.name_of(person) is None


async def test_a_key_that_came_back_with_an_old_backup_is_deleted_again(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        person = await anna_in(site)
        with psycopg.connect(database.app_url, autocommit=True) as connection:
            backup = connection.execute("SELECT account, key_epoch, wrapped FROM data_keys")
            (row,) = backup.fetchall()
            forgetting = forgetting_of(site, tmp_path)
            await forgetting.forget(person, "cli")
            connection.execute(
                "INSERT INTO data_keys (account, key_epoch, wrapped) VALUES (%s, %s, %s)", row
            )
        assert await site.identity.name_of(person) is None
        assert await forgetting.finish_all() == 1
        assert rows(database, "data_keys") == []


def test_the_command_forgets_once_and_asks_before(database: Database, tmp_path: Path) -> None:
    shell = Shell(database, tmp_path / "data")
    shell.json("user", "create", "anna", "--password-stdin", stdin=f"{PASSWORD}\n")
    shell.json("grant", "--user", "anna", "--points", "2.5", "--reason", "why not")
    key = shell.json("key", "create", "--user", "anna")
    assert "--yes" in shell.refused("user", "delete", "anna")
    done = shell.json("user", "delete", "anna", "--yes")
    assert done == {
        "id": done["id"], "user": "anna", "forgotten": True, "keys_revoked": 1, "points_kept": "2.5"
    }  # fmt: skip
    assert "There is no user 'anna'." in shell.refused("user", "delete", "anna", "--yes")
    assert shell.json("key", "revoke", str(key["id"]))["changed"] is False
    assert shell.json("audit")["ok"]
    assert (
        "5 points" not in shell("user", "create", "anna", "--password-stdin", stdin=PASSWORD).stdout
    )


async def test_exports_of_a_forgotten_person_are_gone_with_their_files(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        anna, bert = [(await site.opening.open_person(name, None)).person for name in ("a", "b")]
        # Owner and whose records they are: of Anna's own, about Anna, and none of Anna's.
        wanted = [(anna, anna), (bert, anna), (bert, bert)]
        ids = [uuid4() for _ in wanted]
        folder = ExportFolder(tmp_path).folder
        folder.mkdir(parents=True)
        for export, (owner, person) in zip(ids, wanted, strict=True):
            await add_export(
                site.pool, export, owner, person, ExportKind.STATEMENT, ExportFormat.CSV,
                RecordQuery(), SystemClock().now_us(),
            )  # fmt: skip
            (folder / f"{export}.csv").write_text("time,amount")
        await forgetting_of(site, tmp_path).forget(anna, "cli")
        assert [path.name for path in folder.iterdir()] == [f"{ids[2]}.csv"]
        async with site.pool.connection() as connection:
            left = [export.id for export in await list_exports(connection, bert)]
        assert left == [ids[2]]
