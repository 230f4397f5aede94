"""Plans' door: what the levels offer, defined all at once. Rules are in `plan_text`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from backend.catalog.decide import NothingToChange
from backend.catalog.plan import PLAN, DefinedPlan, decide_define_plans
from backend.journal.commands import AlreadyDone, Command, Refused
from backend.journal.fold import Folds
from backend.journal.view import load_states
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from schemas.errors import Conflict
from schemas.ids import plan_stream
from schemas.plans import LEVEL_NAMES, OfferedPlan, Plan, PlanRef

LEVELS: Final = range(1, len(LEVEL_NAMES))
_FOLDS: Final = Folds([PLAN])


class DefinedPlans(msgspec.Struct, frozen=True):
    """What is offered now, by level, and which levels are new versions."""

    plans: dict[int, OfferedPlan]
    changed: tuple[int, ...]


class Plans:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(self, writer: Writer, pool: Pool) -> None:
        self._writer: Final = writer
        self._pool: Final = pool

    async def define(self, plans: Mapping[int, Plan]) -> DefinedPlans:
        """Levels that say the same as before keep their version; others are left as they are."""
        before = await self.list_plans()
        wanted = tuple(plans.values())
        streams = tuple(plan_stream(level) for level in plans)
        command = Command(
            self._writer.new_id(),
            streams,
            lambda standings, at_us: decide_define_plans(standings, wanted),
        )
        match await self._writer.submit(command):
            case Refused(NothingToChange()):
                return DefinedPlans(before, ())
            case Refused() | AlreadyDone():
                raise Conflict("The plans were changed by someone else; try again.")
            case _:
                after = await self.list_plans()
        changed = tuple(level for level in plans if after[level] != before.get(level))
        return DefinedPlans(after, changed)

    async def list_plans(self) -> dict[int, OfferedPlan]:
        """Every level that was ever defined, by level."""
        streams = [plan_stream(level) for level in LEVELS]
        async with self._pool.connection() as connection:
            states = await load_states(connection, _FOLDS, streams)
        found: dict[int, OfferedPlan] = {}
        for level, stream in zip(LEVELS, streams, strict=True):
            version, state = states.get(stream, (0, DefinedPlan()))
            if state.plan is not None:
                found[level] = OfferedPlan(state.plan, PlanRef(level, version))
        return found
