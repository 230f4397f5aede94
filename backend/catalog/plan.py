"""A `plan:` stream: what a level offers, as defined last. The fold and the decision. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.catalog.decide import NothingToChange
from backend.journal.commands import Accept, Decision, Refuse, Standing
from backend.journal.fold import Fold
from schemas.catalog import PlanDefined
from schemas.plans import Plan


class DefinedPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """None: never defined."""

    plan: Plan | None = None


def apply(state: DefinedPlan, event: Any, version: int, at_us: int) -> DefinedPlan:
    """The plan after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, PlanDefined):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a plan")
    return DefinedPlan(event.plan)


PLAN: Final = Fold("plan", DefinedPlan(), apply)


def decide_define_plans(standings: tuple[Standing, ...], wanted: tuple[Plan, ...]) -> Decision:
    """A new version of each level that is to offer something else, all of them as one unit."""
    events: list[tuple[int, PlanDefined]] = []
    for index, (standing, plan) in enumerate(zip(standings, wanted, strict=True)):
        state: DefinedPlan = standing.state
        if state.plan != plan:
            events.append((index, PlanDefined(plan)))
    return Accept(tuple(events)) if events else Refuse(NothingToChange(0))
