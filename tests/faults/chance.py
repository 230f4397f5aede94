"""Chance that can be had again: every fault prints its seed and the one line that repeats it."""

from __future__ import annotations

import os
import secrets
from random import Random

ROUNDS = "SUANPAN_FAULT_ROUNDS"
SEED = "SUANPAN_FAULT_SEED"


def asked_rounds() -> int | None:
    """As in `make faults`; None in the short form."""
    text = os.environ.get(ROUNDS)
    return int(text) if text else None


def rounds_of(short: int, weight: int = 1) -> int:
    """How many rounds a fault gets; one of `weight` is dear and gets fewer."""
    asked = asked_rounds()
    return short if asked is None else max(short, asked // weight)


def seeded(test: str) -> tuple[Random, str]:
    """`test`: the node id to repeat. With the line that repeats it."""
    seed = os.environ.get(SEED) or secrets.token_hex(4)
    asked = asked_rounds()
    more = "" if asked is None else f" {ROUNDS}={asked}"
    return Random(seed), f"{SEED}={seed}{more} .venv/bin/python -m pytest '{test}'"
