"""What checking a password tells somebody who does not know it."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from tests.conftest import Database
from tests.site import RunningSite, running_site

TRIES = 9
PASSWORD = "the right password 5c1d"


async def median_s(site: RunningSite, names: list[str]) -> float:
    took_s: list[float] = []
    for name in names:
        began_s = time.perf_counter()
        assert await site.base.identity.check_password(name, "not the right one") is None
        took_s.append(time.perf_counter() - began_s)
    return median(took_s)


async def test_a_name_that_nobody_has_takes_as_long_as_a_wrong_password(
    database: Database, tmp_path: Path
) -> None:
    async with running_site(database, tmp_path) as site:
        opening = site.base.opening
        await opening.open_person("anna", PASSWORD)
        await opening.open_person("without", None)
        await median_s(site, ["anna"])
        known_s = await median_s(site, ["anna"] * TRIES)
        for names in ([f"nobody-{number}" for number in range(TRIES)], ["without"] * TRIES):
            assert 0.6 < await median_s(site, names) / known_s < 1.6
