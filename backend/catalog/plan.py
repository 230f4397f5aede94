"""The fold of a `plan:` stream: what a level offers, as defined last. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.catalog import PlanDefined
from schemas.plans import Plan


class DefinedPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """None: never defined."""

    plan: Plan | None = None


def apply(state: DefinedPlan, event: Any, version: int, at_us: int) -> DefinedPlan:
    """The plan after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, PlanDefined):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a plan")
    return DefinedPlan(event.plan)


PLAN: Final = Fold("plan", DefinedPlan(), apply)
