"""Rows of settled requests for tests of folds over recorded usage: plain, in memory, in order."""
# Ids and amounts are written as plain values here.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from schemas.event import Recorded, shard_of, topic_of
from schemas.ledger import (
    HoldReleased,
    HoldSettled,
    PointsHeld,
    ReleaseReason,
    Served,
    ShortfallRecorded,
    UsageLate,
)
from schemas.plans import PlanRef, PlanUse
from schemas.prices import PLAIN_TERMS, PriceRef, Terms
from schemas.registry import encode
from schemas.usage import Basis, Usage

AT_US: Final = 1_750_000_000_000_000
SECOND_US: Final = 1_000_000
A_PLAN: Final = PlanUse(PlanRef(1, 1), "item", AT_US)


class SettledLog:
    """Appends to `rows`; requests are numbered from 1, and every event has its own id."""

    def __init__(self) -> None:
        self.rows: Final[list[Recorded]] = []
        self._versions: Final[dict[str, int]] = {}
        self._requests = 0

    def add(self, stream: str, event: Any, at_us: int = AT_US) -> Recorded:
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        seq = len(self.rows) + 1
        row = Recorded(
            1, seq, seq, UUID(int=seq), UUID(int=seq), topic_of(stream), shard_of(stream), stream,
            version, type(event).__name__, type(event).SCHEMA, at_us, encode(event), b"", b"",
        )  # fmt: skip
        self.rows.append(row)
        return row

    def hold(self, account: int, model: str = "model", at_us: int = AT_US, **more: Any) -> str:
        self._requests += 1
        request = str(UUID(int=self._requests << 2))
        given: dict[str, Any] = {"input_bound": 1_000, "output_bound": 4_096, **more}
        held = PointsHeld(request, 10**9, "relay.chat", 1, model, PriceRef(model, 1), True, **given)
        self.add(f"account:{account}", held, at_us)
        return request

    def settle(
        self,
        account: int,
        request: str,
        usage: Usage,
        amount_upt: int,
        *,
        shortfall_upt: int = 0,
        model: str = "model",
        at_us: int = AT_US,
        terms: Terms = PLAIN_TERMS,
        basis: Basis = Basis.REPORTED,
        served: Served | None = None,
        **more: Any,
    ) -> Recorded:
        event = HoldSettled(
            request, amount_upt, usage, basis, PriceRef(model, more.pop("price_version", 1)),
            served or Served(status=200), terms=terms, **more,
        )  # fmt: skip
        row = self.add(f"account:{account}", event, at_us)
        if shortfall_upt:
            self.add(f"account:{account}", ShortfallRecorded(request, shortfall_upt), at_us)
        return row

    def release(
        self,
        account: int,
        request: str,
        reason: ReleaseReason,
        served: Served | None = None,
        at_us: int = AT_US,
    ) -> Recorded:
        event = HoldReleased(request, reason, served or Served(status=502, attempts=1))
        return self.add(f"account:{account}", event, at_us)

    def late(
        self,
        account: int,
        request: str,
        sweep: UUID,
        usage: Usage,
        amount_upt: int,
        shortfall_upt: int = 0,
        *,
        model: str = "model",
        at_us: int = AT_US,
        served: Served | None = None,
        **more: Any,
    ) -> Recorded:
        event = UsageLate(
            request, sweep, amount_upt, shortfall_upt, usage, Basis.REPORTED, PriceRef(model, 1),
            served or Served(status=200), **more,
        )  # fmt: skip
        return self.add(f"account:{account}", event, at_us)
