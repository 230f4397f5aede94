"""The projections of this version, declared once: for projector, rebuild, health and audit."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Final

import msgspec

from backend.journal.consumer import Consumer
from projections.balance import projection as balance
from projections.codes import projection as codes
from projections.requests import projection as requests
from projections.statement import projection as statement
from projections.target import Schema
from projections.usage import projection as usage
from schemas.errors import NotFound


class Projection(msgspec.Struct, frozen=True):
    """A consumer that owns tables."""

    name: str
    topics: tuple[str, ...]
    tables: tuple[str, ...]
    """The one that people read first, then what the projection keeps for itself."""
    make: Callable[[Schema], Consumer]
    revision: int = 1
    """Raised when handlers change so that the stored rows must be made again."""

    def script(self) -> str:
        """The statements that make its tables, with unqualified names, safe to repeat."""
        return (resources.files("projections") / self.name / "tables.sql").read_text("utf-8")


PROJECTIONS: Final = (
    Projection(balance.NAME, balance.TOPICS, balance.TABLES, balance.BalanceProjection),
    Projection(statement.NAME, statement.TOPICS, statement.TABLES, statement.StatementProjection),
    Projection(requests.NAME, requests.TOPICS, requests.TABLES, requests.RequestsProjection),
    Projection(usage.NAME, usage.TOPICS, usage.TABLES, usage.UsageProjection),
    Projection(codes.NAME, codes.TOPICS, codes.TABLES, codes.CodesProjection),
)


def find_projection(name: str) -> Projection:
    """Raises NotFound with the names there are."""
    for projection in PROJECTIONS:
        if projection.name == name:
            return projection
    names = ", ".join(projection.name for projection in PROJECTIONS)
    raise NotFound(f"There is no projection {name!r}; there are {names}.")


def live_consumers() -> tuple[Consumer, ...]:
    """One consumer per projection, writing the tables that are read."""
    return tuple(projection.make(Schema.READ) for projection in PROJECTIONS)
