"""What an audit says: one line per check, and the first place where it fails."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from schemas.event import Position


class First(msgspec.Struct, frozen=True):
    """Where a check fails first."""

    stream: str
    version: int
    what: str


class Check(msgspec.Struct, frozen=True):
    id: str
    ok: bool
    violations: int
    first: First | None


class Coverage(msgspec.Struct, frozen=True):
    """What was read, and what the answer therefore does not prove."""

    kind: Literal["full", "since-seal"]
    events_read: int
    after: Position
    """Rows up to here were not read; zeros: all were."""
    seal: int | None
    """The number of the seal that the rows before are covered by; None: all were read."""
    fell_back: str | None
    """Why all was read although less was asked for."""
    full_audit_at_us: int | None
    """When every row was last read, and nothing was wrong."""
    checkpoint: str | None
    """SHA-256 of the checkpoint that was kept for the next audit, in hex."""
    seconds: float
    events_per_s: int
    unproven: tuple[str, ...]


UNPROVEN_SINCE: Final = (
    "Rows before the seal were counted and heads compared: only a full audit hashes them again.",
    "States, sums and prices before the seal are the checkpoint's: its signature covers them.",
    "Statement lines, requests and usage were compared only for accounts written to since.",
    "Recorded commands before the seal were not looked up again.",
    "Kafka's records, where there are any, were not compared with the table.",
)
"""Of an incremental audit; a full one leaves nothing of it out."""


class AuditReport(msgspec.Struct, frozen=True):
    """`digest` as in a replay up to `position`. Encodes to the object that `--json` prints.

    `events` and `streams`: of the whole log, however much of it was read.
    """

    ok: bool
    events: int
    streams: int
    checks: tuple[Check, ...]
    digest: str
    position: Position
    coverage: Coverage

    @property
    def first(self) -> First | None:
        """The first failing check's first violation."""
        return next((check.first for check in self.checks if not check.ok), None)


CHAIN: Final = "chain"
STATES: Final = "states"
CONSERVATION: Final = "I1"
NO_OVERDRAFT: Final = "I2"
ONE_OUTCOME: Final = "I3"
SETTLE_BOUNDS: Final = "I4"
SINGLE_USE: Final = "I5"
COMMANDS: Final = "I6"
GAPLESS: Final = "I7"
DUPLICATE_PROOF: Final = "I11"
COMPLETENESS: Final = "I12"
PROVENANCE: Final = "I13"
PLANS: Final = "plans"
READ_MODELS: Final = "I9"
SEALS: Final = "I8"
TOPICS: Final = "kafka"
CHECKS: Final[tuple[str, ...]] = (
    CHAIN, STATES, CONSERVATION, NO_OVERDRAFT, ONE_OUTCOME, SETTLE_BOUNDS, SINGLE_USE,
    COMMANDS, GAPLESS, TOPICS, SEALS, READ_MODELS, DUPLICATE_PROOF, COMPLETENESS, PROVENANCE, PLANS,
)  # fmt: skip
"""In the order of the report: a broken chain explains most of what comes after it.

`chain`: hashes, versions, topics, shards. `states`: the table `streams`. `kafka`: the records of
the topics are the rows of the table. `plans`: what subscriptions cost, were credited and paid for.
The others are the invariants of `backend/ledger/README.md`; I8 are the seals, I9 the read models.
"""


class Findings:
    """Collects violations; of each check the first one that was found is kept."""

    def __init__(self) -> None:
        self._counts: Final[dict[str, int]] = dict.fromkeys(CHECKS, 0)
        self._first: Final[dict[str, First]] = {}

    def add(self, check: str, stream: str, version: int, what: str) -> None:
        self._counts[check] += 1
        if check not in self._first:
            self._first[check] = First(stream, version, what)

    def checks(self) -> tuple[Check, ...]:
        return tuple(
            Check(check, count == 0, count, self._first.get(check))
            for check, count in self._counts.items()
        )
