"""What all fault tests are given: seeded chance, a fake provider, and roles that end with the
test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.embedded_site import open_folder
from tests.faults.chance import seeded
from tests.faults.roles import Role
from tests.faults.site import upstream_with_models
from tests.upstream import FakeUpstream

MakeRole = Callable[..., Role]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> Random:
    return seeded(request.node.nodeid)


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

    def make(name: str, environment: dict[str, str], home: str | None = None) -> Role:
        role = Role(name, folder / (home or f"{name}{len(made)}"), environment)
        made.append(role)
        return role

    yield make
    for role in made:
        role.end()
