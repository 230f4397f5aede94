"""What all fault tests are given: seeded chance, a ground, a report; and the table at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from scripts.kafka import KafkaProblem, fetch
from tests.embedded_site import open_folder
from tests.faults.chance import asked_rounds, seeded
from tests.faults.figures import Report
from tests.faults.ground import Ground
from tests.faults.roles import ROOT, Role
from tests.faults.site import upstream_with_models
from tests.upstream import FakeUpstream

MakeRole = Callable[..., Role]
REPORT = pytest.StashKey[Report]()
AGAIN = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-report",
        type=Path,
        help="write the table of the faults to this path, as .json and as .md",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(number): the fault of tests/faults/catalogue.py")
    rounds = asked_rounds()
    config.stash[REPORT] = Report(
        settings={"rounds": rounds or "short form", "processors": os.cpu_count()}
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps why a fault has no figures, and tells how to repeat one that failed."""
    del call
    outcome = yield
    report = item.config.stash[REPORT]
    numbers = [str(mark.args[0]) for mark in item.iter_markers("fault")]
    again = item.stash.get(AGAIN, None)
    for number in numbers:
        if outcome.skipped and isinstance(outcome.longrepr, tuple):
            report.skipped[number] = outcome.longrepr[2].removeprefix("Skipped: ")
        elif outcome.failed:
            report.failed[number] = again or item.nodeid
    if outcome.failed and again is not None:
        outcome.sections.append(("again", again))
    return outcome


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if not report.rows:
        return
    terminalreporter.section("faults")
    for line in report.lines():
        terminalreporter.write_line(line)
    for number, again in report.failed.items():
        terminalreporter.write_line(f"{number} failed; again: {again}", red=True)
    path = config.getoption("fault_report", default=None)
    if path is not None:
        report.write(path)
        terminalreporter.write_line(f"written: {path.with_suffix('.md')}")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[REPORT]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> Random:
    chance, again = seeded(request.node.nodeid)
    request.node.stash[AGAIN] = again
    print(f"again: {again}")
    return chance


@pytest.fixture(scope="session")
def broker_jars() -> Path | None:
    """None where no broker can be had: the site then runs without Kafka."""
    try:
        return fetch(ROOT)
    except KafkaProblem as problem:
        if os.environ.get("SUANPAN_TEST_REQUIRE_ALL") == "1":
            pytest.fail(str(problem))
        return None


class Grounds:
    """One ground for all faults, as long as none of them leaves it spoiled."""

    def __init__(self, jars: Path | None) -> None:
        self._jars = jars
        self._folder: Any = None
        self._ground: Ground | None = None

    async def sound(self) -> Ground:
        if self._ground is not None and self._ground.spoiled:
            await self.close()
        if self._ground is None:
            self._folder = open_folder()
            self._ground = await Ground(self._folder.__enter__(), self._jars).__aenter__()
        return self._ground

    async def close(self) -> None:
        if self._ground is None:
            return
        await self._ground.__aexit__(None, None, None)
        kept = self._ground.spoiled and os.environ.get("SUANPAN_FAULT_KEEP")
        self._ground = None
        if not kept:
            self._folder.__exit__(None, None, None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def grounds(broker_jars: Path | None) -> AsyncIterator[Grounds]:
    grounds = Grounds(broker_jars)
    yield grounds
    await grounds.close()


@pytest_asyncio.fixture(loop_scope="session")
async def ground(grounds: Grounds) -> Ground:
    """A whole site that stands. Tests that use it run on the session's event loop."""
    return await grounds.sound()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with upstream_with_models() as upstream:
        yield upstream


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place that embedded servers of another user can reach."""
    with open_folder() as folder:
        yield folder


@pytest.fixture
def make_role(folder: Path) -> Iterator[MakeRole]:
    """Makes roles, each in a folder of its own unless told; ends those that still run."""
    made: list[Role] = []

    def make(name: str, environment: dict[str, str], home: str | None = None, **more: Any) -> Role:
        role = Role(name, folder / (home or f"{name}{len(made)}"), environment, **more)
        made.append(role)
        return role

    yield make
    for role in made:
        role.end()
