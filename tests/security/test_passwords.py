"""What checking a password tells somebody who does not know it."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from tests.conftest import Database
from tests.site import RunningSite, running_site

TRIES = 9
ROUNDS = 6
"""A machine that is busy meanwhile can blur one round; a hash that is left out shows in all."""
PASSWORD = "the right password 5c1d"


async def took_s(site: RunningSite, name: str) -> float:
    began_s = time.perf_counter()
    assert await site.base.identity.check_password(name, "not the right one") is None
    return time.perf_counter() - began_s


async def ratio(site: RunningSite, other: str) -> float:
    """Median time for another name over that for a wrong password, asked by turns."""
    known_s: list[float] = []
    other_s: list[float] = []
    for number in range(TRIES):
        known_s.append(await took_s(site, "anna"))
        other_s.append(await took_s(site, other.format(number)))
    return median(other_s) / median(known_s)


async def test_a_name_that_nobody_has_takes_as_long_as_a_wrong_password(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        opening = site.base.opening
        await opening.open_person("anna", PASSWORD)
        await opening.open_person("without", None)
        for other in ("nobody-{}", "without"):
            found: list[float] = []
            while not any(0.6 < one < 1.6 for one in found):
                assert len(found) < ROUNDS, found
                found.append(await ratio(site, other))
