"""Many clients want the same thing at the same instant: exactly as many get it as there is."""

from __future__ import annotations

from random import Random

import pytest

from tests.faults.chance import rounds_of
from tests.faults.figures import Figures, Report
from tests.faults.ground import Ground
from tests.faults.load import Returned
from tests.faults.storms import STORMS, note_of, strike
from tests.faults.verdict import examine

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.fault("F30")]


@pytest.mark.parametrize("name", STORMS)
async def test_a_storm_gets_exactly_what_there_is(
    name: str, ground: Ground, chance: Random, report: Report
) -> None:
    what, gather = STORMS[name]
    rounds, unknown, note, age_s = rounds_of(1, weight=2), 0, "", 0.0
    ground.spoiled = True
    for _ in range(rounds):
        storm = await gather(ground, chance)
        done = await strike(storm)
        verdict = await examine(ground, storm.accounts, storm.calls)
        assert not verdict.violations, "\n".join(verdict.violations[:20])
        assert done == storm.exactly, f"{done} of {len(storm.attempts)}, {storm.exactly} are due"
        unknown += sum(call.returned is Returned.UNKNOWN for call in storm.calls)
        age_s = max(age_s, verdict.books.hold_age_s({one.stream for one in storm.accounts}))
        note = note_of(storm, done)
    ground.spoiled = False
    report.rows.append(Figures("F30", what, rounds, 0, 0.0, unknown, age_s, note=note))
