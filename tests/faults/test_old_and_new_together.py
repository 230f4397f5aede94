"""A rolling upgrade: the code before the log's last new words answers beside this code, on a
database that is migrated under load; and each reads what the other's corpus holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from backend.folds import ALL_FOLDS
from backend.journal.migrate import migrate
from projections.replay import replay_table
from tests.conftest import Database
from tests.faults.books import check_states, read_books, until_ended
from tests.faults.conftest import MakeRole
from tests.faults.figures import Figures, Report
from tests.faults.history import History, p99_ms
from tests.faults.load import Ending, Load, Returned
from tests.faults.roles import ROOT, Role
from tests.faults.site import Account, outside_database
from tests.upstream import FakeUpstream

pytestmark = pytest.mark.fault("F28")

GOLDEN = "tests/golden"
WIDTH = 6
POINTS = 1_000
PASSWORD = "correct horse battery staple"
MODELS = {"quick": ("0.1", "0.2"), "late-head": ("0.1", "0.2")}
READS_CORPUS = """
import json, sys
from pathlib import Path
from schemas.registry import UndecodableEvent, decode
from tests.unit.test_golden_events import row_of
read = {}
for path in Path(sys.argv[1]).glob("*.*.json"):
    golden = json.loads(path.read_text())
    row = row_of(golden["type"], golden["schema"], golden["payload"].encode(), "account:1")
    try:
        read[path.name] = repr(decode(row))
    except UndecodableEvent:
        read[path.name] = None
print(json.dumps(read))
"""


def git(*words: str) -> bytes:
    """Skips where there is no history to take older code from."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no git here to take older code from")
    if done.returncode != 0:
        pytest.skip(f"no older code can be had: {done.stderr.decode()[:200].strip()}")
    return done.stdout


def older_code() -> str:
    """SUANPAN_FAULT_OLD_REF; else the newest tag that is not this code; else the commit before the
    first schema that replaced another.
    """
    given = os.environ.get("SUANPAN_FAULT_OLD_REF")
    if given:
        return given
    head = git("rev-parse", "HEAD").decode().strip()
    for tag in git("tag", "--sort=-creatordate").decode().split():
        if git("rev-list", "-n1", tag).decode().strip() != head:
            return tag
    second = git("log", "--format=%H", "--diff-filter=A", "--", f"{GOLDEN}/*.2.json").decode()
    if not second:
        pytest.skip("the history here does not reach back to older code")
    return git("rev-parse", f"{second.split()[-1]}^").decode().strip()


def unpacked(folder: Path) -> Path:
    place = folder / "old"
    archive = git("archive", "--format=tar", older_code())
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(place, filter="data")
    return place


async def old_command(code: Path, environment: dict[str, str], *words: str, said: str = "") -> Any:
    """A command of the older code; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backend.cli", *words, "--json",
        cwd="/", env={**environment, "PYTHONPATH": str(code)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(said.encode()), 60)
    assert process.returncode == 0, f"{words}: {out.decode()} {errors.decode()}"
    return json.loads(out)


async def stocked(code: Path, environment: dict[str, str], upstream_url: str) -> Account:
    """A site as the older code makes it: prices, a channel, one person with points and a key."""
    await old_command(code, environment, "migrate")
    for model, (taken, given) in MODELS.items():
        asked = ("--per-1k-input", taken, "--per-1k-output", given)
        await old_command(code, environment, "price", "set", "--model", model, *asked)
    await old_command(
        code, environment, "channel", "add", "--name", "fake", "--base-url", upstream_url,
        "--models", ",".join(MODELS), "--no-secret",
    )  # fmt: skip
    await old_command(
        code, environment, "user", "create", "somebody", "--password-stdin", said=PASSWORD
    )
    points = ("--points", str(POINTS), "--reason", "test")
    await old_command(code, environment, "grant", "--user", "somebody", *points)
    key = await old_command(code, environment, "key", "create", "--user", "somebody")
    return Account("account:1", key["key"], POINTS * 1_000_000)


async def test_old_and_new_code_charge_once_side_by_side(
    empty_database: Database,
    upstream: FakeUpstream,
    make_role: MakeRole,
    folder: Path,
    chance: Random,
    report: Report,
) -> None:
    code = await asyncio.to_thread(unpacked, folder)
    environment = outside_database(empty_database.app_url, empty_database.owner_url)
    commands = Role("cli", folder / "cli", environment).environment
    account = await stocked(code, commands, upstream.url)
    old = make_role("api", environment, code=code)
    new = make_role("api", environment)
    await old.start()
    history = History(folder / "history-F28.jsonl")
    async with Load((old.url, new.url), (account,), tuple(MODELS), chance, WIDTH) as load:
        load.tell = history.tell
        window = history.injected("migrated under the older code")
        await load.until_answered(WIDTH)
        await asyncio.to_thread(migrate, empty_database.owner_url, empty_database.app_url)
        await new.start()
        began_s = asyncio.get_running_loop().time()
        await load.until_answered(4 * WIDTH)
        old.ask_to_stop()
        assert await old.ended() == 0
        history.healed(window)
        await load.until_served(max(window.healed_s, began_s))
        history.recovered(window)
    history.close()
    await until_ended(empty_database.app_url)
    books = await read_books(empty_database.app_url)
    account = msgspec.structs.replace(account, stream=next(iter(books.balances)))
    wrong = books.examine([account], load.calls, upstream.reported())
    assert not wrong, "\n".join(wrong[:20])
    await check_states(empty_database.app_url, books)
    replay = await replay_table(empty_database.app_url, ALL_FOLDS)
    assert replay.differences == ()
    side_by_side = [call for call in load.calls if call.began_s >= began_s]
    refused = sum(call.returned is Returned.FAIL and call.status > 0 for call in side_by_side)
    answered = sum(call.ending is Ending.ANSWERED for call in side_by_side)
    report.rows.append(
        Figures(
            "F28", "old and new code on one database, migrated under load", 1, 0,
            history.unavailable_s(), history.unknown, books.hold_age_s({account.stream}),
            p99_ms(history.during()), history.recovery_s(),
            f"older code is {older_code()[:12]}; side by side {answered} answered, "
            f"{refused} refused",
        )
    )  # fmt: skip


def read_by(code: Path, corpus: Path) -> dict[str, str | None]:
    """What this code makes of every payload of a corpus; None where it says that it cannot."""
    done = subprocess.run(
        [sys.executable, "-c", READS_CORPUS, str(corpus / GOLDEN)],
        env={"PYTHONPATH": str(code), "PATH": os.environ["PATH"]},
        cwd=code, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_each_reads_the_others_corpus_or_says_that_it_cannot(folder: Path) -> None:
    code = await asyncio.to_thread(unpacked, folder)
    assert None not in read_by(ROOT, code).values(), "this code reads whatever was ever written"
    known, ours = read_by(code, code), read_by(code, ROOT)
    assert known
    assert ours == {name: known.get(name) for name in ours}, "newer words are refused, not guessed"
