"""What a measurement yields: rows of figures, each perhaps with a goal. No I/O."""

from __future__ import annotations

from typing import Final

import msgspec

BUSY_SHARE: Final = 0.15
"""Others using more than this much of one processor make a row doubtful."""


class Goal(msgspec.Struct, frozen=True):
    """A limit that should not be crossed; goals do not gate anything."""

    limit: float
    at_least: bool
    """False: the figure should be at most `limit`."""

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:,g}"


def at_least(limit: float) -> Goal:
    return Goal(limit, at_least=True)


def at_most(limit: float) -> Goal:
    return Goal(limit, at_least=False)


class Figure(msgspec.Struct, frozen=True):
    """One number with its unit."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.value)


class Row(msgspec.Struct, frozen=True):
    """One measurement in one setting, the best of its repetitions."""

    name: str
    figures: tuple[Figure, ...] = ()
    errors: int = 0
    """Over all repetitions."""
    first_errors: tuple[str, ...] = ()
    others_share: float = 0
    """Processor time that others used meanwhile, in processors."""
    skipped: str | None = None
    """Why it was not measured."""

    @property
    def busy(self) -> bool:
        return self.others_share > BUSY_SHARE

    def value(self, name: str) -> float:
        """KeyError where there is no such figure."""
        return {figure.name: figure.value for figure in self.figures}[name]
