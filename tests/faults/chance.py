"""Chance that can be had again: every fault test prints its seed and the line that repeats it."""

from __future__ import annotations

import os
import secrets
from random import Random

ROUNDS_DEFAULT = 10


def rounds() -> int:
    """How many kills: few where the suite runs often, many in `make faults`."""
    return int(os.environ.get("SUANPAN_FAULT_ROUNDS") or ROUNDS_DEFAULT)


def seeded(test: str) -> Random:
    """`test`: the node id to repeat."""
    seed = os.environ.get("SUANPAN_FAULT_SEED") or secrets.token_hex(4)
    print(
        f"seed {seed}; again: SUANPAN_FAULT_SEED={seed} SUANPAN_FAULT_ROUNDS={rounds()}"
        f" .venv/bin/python -m pytest '{test}'"
    )
    return Random(seed)
