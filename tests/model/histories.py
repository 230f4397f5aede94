"""How many histories each machine tries, and from which seed: the same ones in every run.

SUANPAN_MODEL_SEED takes other histories (any number, or `random`); SUANPAN_MODEL_TIMES so many more
of them.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, Final

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine

_GIVEN: Final = os.environ.get("SUANPAN_MODEL_SEED", "1")
SEED: Final = secrets.randbelow(2**31) if _GIVEN == "random" else int(_GIVEN)
TIMES: Final = int(os.environ.get("SUANPAN_MODEL_TIMES", "1"))


def histories_of(machine: type[RuleBasedStateMachine], histories: int, steps: int) -> Any:
    """The test case of a machine: so many histories of at most so many steps."""
    case: Any = seed(SEED)(machine).TestCase
    case.settings = settings(
        max_examples=histories * TIMES,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )
    return case
