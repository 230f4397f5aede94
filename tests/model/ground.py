"""Streams in memory: commands land through a batch each, as they would in the log."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.folds import ALL_FOLDS
from backend.journal.batch import Batch, Head
from backend.journal.chain import genesis_hash
from backend.journal.commands import Accept, Command, Decide, Refuse
from backend.ledger.decide import SettleAsked
from projections.audit.books import Books
from projections.audit.report import Findings
from projections.verifying import Verifier
from schemas.catalog import GroupDefined, PlanDefined, PriceSet
from schemas.event import Recorded
from schemas.ids import RequestId, group_stream, plan_stream, price_stream
from schemas.plans import Group, OfferedGroup, OfferedPlan, Plan, PlanItem, PlanRef
from schemas.prices import Free, PerCall, PerToken, Price, PriceRef
from schemas.usage import Usage
from tests.given import AT_US, SITE, settle_asked

PRICES: Final[dict[str, Price]] = {
    "free": Free(),
    "call": PerCall(3_000_000),
    "token": PerToken(1_000, 2_000),
    "odd": PerToken(7, 11, 3),
}
GROUPS: Final = {
    "basic": OfferedGroup(Group(500_000), 1),
    "vip": OfferedGroup(Group(1_300_001, ("call", "token")), 1),
}
_BASIC: Final = Plan(
    "Basic",
    7_001,  # pyright: ignore[reportArgumentType]
    (PlanItem("chat", "Chat", ("token",), 2), PlanItem("call", "Call", ("call",), 1)),
    relay=True,
    discounts=((3, 333_333),),
)
_STANDARD: Final = Plan(
    "Standard",
    19_997,  # pyright: ignore[reportArgumentType]
    (PlanItem("chat", "Chat", ("token",), 3), PlanItem("odd", "Odd", ("odd",), -1)),
    discounts=((6, 70_001),),
)
PLANS: Final = {
    1: OfferedPlan(_BASIC, PlanRef(1, 1)),
    2: OfferedPlan(_STANDARD, PlanRef(2, 1)),
}


def settle_of(request: RequestId, model: str, usage: Usage) -> SettleAsked:
    asked = settle_asked(request, PRICES[model], usage)
    return msgspec.structs.replace(asked, price_ref=PriceRef(model, 1))


class Streams:
    """All streams of one history; a command id that landed is not tried again."""

    def __init__(self) -> None:
        self.heads: Final[dict[str, Head]] = {}
        self.rows: Final[list[Recorded]] = []
        self.events: Final[list[tuple[str, Any]]] = []
        self.at_us = AT_US
        self._done: Final[set[UUID]] = set()
        self._ids = 0

    def new_id(self) -> UUID:
        """The lowest bits stay free: a request's outcome is named by them."""
        self._ids += 1
        return UUID(int=self._ids << 8)

    def state(self, stream: str) -> Any:
        return self.head(stream).state

    def head(self, stream: str) -> Head:
        head = self.heads.get(stream)
        if head is None:
            head = Head(0, genesis_hash(SITE, stream), ALL_FOLDS.of(stream).empty)
            self.heads[stream] = head
        return head

    def submit(
        self, streams: Sequence[str], decide: Decide, command_id: UUID | None = None
    ) -> tuple[Any, ...] | Refuse | None:
        """The events that landed, the refusal, or None for a command id the log already has."""
        command = Command(command_id or self.new_id(), tuple(streams), decide)
        if command.command_id in self._done:
            return None
        heads = {stream: self.head(stream) for stream in streams}
        batch = Batch(ALL_FOLDS, heads, self.at_us, self.new_id)
        decision = batch.add(command)
        if isinstance(decision, Refuse):
            return decision
        self._done.add(command.command_id)
        laid_out = batch.laid_out()
        for given in laid_out.streams:
            head = self.heads[given.stream] = batch.head_of(given.stream)
            if given.state:
                # What the table keeps of a state is all of it.
                stored = b64decode(given.state)
                assert ALL_FOLDS.of(given.stream).decode(stored) == head.state
        for row, (index, event) in zip(laid_out.events, decision.events, strict=True):
            assert streams[index] == row.stream
            self.events.append((row.stream, event))
            self.rows.append(
                Recorded(
                    1,
                    len(self.rows) + 1,
                    len(self.rows) + 1,
                    row.event_id,
                    row.command_id,
                    row.topic,
                    row.shard,
                    row.stream,
                    row.version,
                    row.type,
                    row.schema,
                    self.at_us,
                    b64decode(row.payload),
                    b64decode(row.prev_hash),
                    b64decode(row.hash),
                )
            )
        return tuple(event for _, event in decision.events)

    def assert_sound(self) -> None:
        """What was recorded, read back, folds to the same states, and the auditor is content."""
        rows = [*_catalogue(), *self.rows]
        findings = Findings()
        books = Books(findings)
        verifier = Verifier(SITE, ALL_FOLDS, books.observe)
        verifier.feed(rows)
        books.finish()
        assert verifier.faults() == []
        assert [check for check in findings.checks() if not check.ok] == []
        for stream, head in self.heads.items():
            line = verifier.line_of(stream)
            assert (line.version, line.hash) == (head.version, head.hash)
            assert line.encoded_state() == ALL_FOLDS.of(stream).encode(head.state)


def _catalogue() -> Sequence[Recorded]:
    """Prices, groups and plans as an operator would have set them before."""
    if not _RECORDED:
        streams = Streams()
        for model, price in PRICES.items():
            _record(streams, price_stream(model), PriceSet(price))
        for name, group in GROUPS.items():
            _record(streams, group_stream(name), GroupDefined(group.group))
        for level, plan in PLANS.items():
            _record(streams, plan_stream(level), PlanDefined(plan.plan))
        _RECORDED.extend(streams.rows)
    return _RECORDED


def _record(streams: Streams, stream: str, event: Any) -> None:
    streams.submit((stream,), lambda standings, at_us: Accept(((0, event),)))


_RECORDED: Final[list[Recorded]] = []
