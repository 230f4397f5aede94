"""What a what-if says: sums per model and account, and settlements that do not recompute. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

import msgspec

ANOMALIES_MAX: Final = 100
"""Named in the report; all are counted."""


class Sums(msgspec.Struct, gc=False):
    """Micro-points and settlements; `due` is charged and fallen short together."""

    settlements: int = 0
    charged_upt: int = 0
    shortfall_upt: int = 0
    what_if_upt: int = 0
    """What would have been due."""
    priced_upt: int = 0
    """Due where the file says what the provider takes."""
    priced_what_if_upt: int = 0
    cost_upt: int = 0
    """What the provider takes for those."""
    plan_calls: int = 0
    """Settlements that a plan paid: due nothing, whatever the price."""
    plan_list_upt: int = 0
    """What those would have cost at the recorded prices."""
    plan_list_what_if_upt: int = 0
    plan_cost_upt: int = 0

    @property
    def due_upt(self) -> int:
        return self.charged_upt + self.shortfall_upt

    @property
    def difference_upt(self) -> int:
        return self.what_if_upt - self.due_upt

    @property
    def margin_upt(self) -> int:
        """Of what has a cost price; calls that a plan paid stand apart."""
        return self.priced_upt - self.cost_upt

    @property
    def margin_what_if_upt(self) -> int:
        return self.priced_what_if_upt - self.cost_upt


class Anomaly(msgspec.Struct, frozen=True):
    """A settlement that is not what its usage costs at its own price version and terms."""

    stream: str
    version: int
    event_id: UUID
    request_id: str
    recorded_upt: int
    """Charged and fallen short."""
    recomputed_upt: int | None
    """None: the price version it names does not exist."""

    @property
    def what(self) -> str:
        if self.recomputed_upt is None:
            return "names a price version that does not exist"
        return "is not what its usage costs"


class RepriceReport(msgspec.Struct, frozen=True):
    """All of [since, until), times in microseconds since 1970."""

    since_us: int
    until_us: int
    total: Sums
    models: dict[str, Sums]
    accounts: dict[str, Sums]
    rows: dict[tuple[str, str], Sums]
    """By account stream and model, sorted."""
    anomalies: tuple[Anomaly, ...]
    anomalies_count: int

    def most_affected(self, count_max: int) -> list[tuple[str, Sums]]:
        """Accounts by how much they would have paid more or less; unmoved ones are left out."""
        moved = [item for item in self.accounts.items() if item[1].difference_upt]
        moved.sort(key=lambda item: (-abs(item[1].difference_upt), item[0]))
        return moved[:count_max]


def added(parts: Iterable[Sums]) -> Sums:
    total = Sums()
    for part in parts:
        for name in Sums.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(part, name))
    return total
