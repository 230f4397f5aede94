"""Limits in memory, ready for admission: a look-up by scope and id. No I/O per call."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import msgspec

from backend.catalog.limit import GROUP, MODEL, Limited, limit_of
from backend.kit.rates import DAY, MINUTE, Period
from schemas.catalog import Limits

COUNTED_OPEN: Final = (GROUP, MODEL)
"""Where concurrency is counted in process; of a key and a person the ledger decides it exactly."""

Unit = Literal["requests", "tokens", "open"]


class LimitRule(msgspec.Struct, frozen=True):
    """One number that bounds one count."""

    scope: str
    id: str
    unit: Unit
    """`open`: requests under way at once."""
    period: Period | None
    """None for what is open."""
    limit: int
    name: str
    """Of the counter, the same in every process."""


class LimitView:
    """Listener of a `StateView` for `limit:` streams."""

    kinds: ClassVar[tuple[str, ...]] = ("limit",)

    def __init__(self) -> None:
        self._rules: Final[dict[tuple[str, str], tuple[LimitRule, ...]]] = {}
        self._concurrency: Final[dict[tuple[str, str], int]] = {}

    @property
    def counts(self) -> bool:
        """Is there any limit that is counted?"""
        return bool(self._rules)

    def rules(self, scope: str, identity: str) -> tuple[LimitRule, ...]:
        """Counted limits of a key, person, group or model; empty where there are none.

        How much a key or a person may have open at once is not among them: the ledger decides it.
        """
        return self._rules.get((scope, identity), ())

    def concurrency(self, scope: str, identity: str) -> int | None:
        """How much a key or a person may have open at once; None: no limit."""
        if not self._concurrency:
            return None
        return self._concurrency.get((scope, identity))

    def put(self, stream: str, version: int, state: Limited) -> None:
        scope, identity = place = limit_of(stream)
        self.drop(stream)
        rules = _rules_of(scope, identity, state.limits)
        if rules:
            self._rules[place] = rules
        if state.limits.concurrency is not None and scope not in COUNTED_OPEN:
            self._concurrency[place] = state.limits.concurrency

    def drop(self, stream: str) -> None:
        place = limit_of(stream)
        self._rules.pop(place, None)
        self._concurrency.pop(place, None)


def _rules_of(scope: str, identity: str, limits: Limits) -> tuple[LimitRule, ...]:
    counted: list[tuple[Unit, Period | None, int | None]] = [
        ("requests", MINUTE, limits.requests_per_minute),
        ("requests", DAY, limits.requests_per_day),
        ("tokens", MINUTE, limits.tokens_per_minute),
        ("tokens", DAY, limits.tokens_per_day),
    ]
    if scope in COUNTED_OPEN:
        counted.append(("open", None, limits.concurrency))
    return tuple(
        LimitRule(
            scope,
            identity,
            unit,
            period,
            limit,
            f"{scope}:{identity}:{unit}:{'now' if period is None else period.word}",
        )
        for unit, period, limit in counted
        if limit is not None
    )
