"""Rates of relay calls: lets a call in and counts it, or says which limit is reached.

Counts in memory, never waits for Valkey but for a count it has never read. Knows no money.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from backend.catalog.limit import GROUP, KEY, MODEL, PERSON
from backend.catalog.limit_view import LimitRule, LimitView
from backend.http.relay.errors import rate_headers
from backend.http.relay.estimate import closer_estimate, rough_estimate
from backend.identity.key_view import KeyEntry
from backend.kit.clock import Clock
from backend.kit.rates import Counter
from backend.kit.shared_rates import SharedRates
from schemas.chat import ChatRequest
from schemas.errors import RateLimited
from schemas.relay import KeyTerms
from schemas.usage import Usage

Headers = list[tuple[bytes, bytes]]

GROUPS_MAX: Final = 100_000
OPEN_RETRY_S: Final = 1
SAY_EARLY: Final = 10
"""A process tells others at once when it has counted this part of a limit since it last did."""

_WHOM: Final = {KEY: "this key", PERSON: "this account"}


class Bound(msgspec.Struct, frozen=True, gc=False):
    """A rule and the counter it bounds."""

    rule: LimitRule
    counter: Counter

    def left(self, now_us: int) -> int:
        return max(0, self.rule.limit - self.counter.total(now_us))


class RateGate:
    """One per process."""

    def __init__(self, limits: LimitView, rates: SharedRates, clock: Clock) -> None:
        self._limits: Final = limits
        self._rates: Final = rates
        self._clock: Final = clock
        self._groups: OrderedDict[str, str] = OrderedDict()

    async def admit(self, entry: KeyEntry, request: ChatRequest) -> Admission | None:
        """Counts a call, and its input's estimate as tokens; None where no limit is set at all.

        Raises RateLimited, and has counted nothing then.
        """
        if not self._limits.counts:
            return None
        bounds = self._bounds(entry, request.model)
        unread = [bound.counter for bound in bounds if not bound.counter.known]
        if unread:
            await self._rates.first_read(unread)
        # From here on nothing awaits: what is checked is what is counted.
        now_us = self._clock.now_us()
        tokens = _fitting_estimate(bounds, request, now_us)
        reached = [bound for bound in bounds if bound.left(now_us) < _amount(bound.rule, tokens)]
        if reached:
            raise _refusal(reached, tokens, now_us)
        # A key that is bound to a group says nothing of its account's own.
        account = None if entry.group else entry.account
        admission = Admission(self, self._clock, account, bounds, tokens)
        admission.count(now_us)
        return admission

    def terms(self, entry: KeyEntry) -> KeyTerms:
        """What the ledger must know of the key: its own terms, and the operator's concurrency."""
        terms, at_once = entry.terms, self._limits.concurrency(KEY, str(entry.key))
        if at_once is None or (terms.concurrency is not None and terms.concurrency <= at_once):
            return terms
        return msgspec.structs.replace(terms, concurrency=at_once)

    def at_once(self, entry: KeyEntry) -> int | None:
        """How many calls the account may have under way: for the ledger to decide."""
        return self._limits.concurrency(PERSON, str(entry.person))

    def learn(self, account: str, group: str) -> None:
        """The group that an account was in at its last hold."""
        if self._groups.get(account) == group:
            return
        self._groups[account] = group
        self._groups.move_to_end(account)
        while len(self._groups) > GROUPS_MAX:
            self._groups.popitem(last=False)

    def counted(self, bound: Bound) -> None:
        """Others hear soon of what is a good part of the limit."""
        if bound.counter.unsaid * SAY_EARLY >= bound.rule.limit:
            self._rates.hurry()

    def _bounds(self, entry: KeyEntry, model: str) -> tuple[Bound, ...]:
        rules = self._limits.rules
        group = entry.group or self._groups.get(entry.account, "")
        found = (
            *rules(KEY, str(entry.key)),
            *rules(PERSON, str(entry.person)),
            *rules(GROUP, group),
            *rules(MODEL, model),
        )
        now_us, use = self._clock.now_us(), self._rates.counters.use
        return tuple(Bound(rule, use(rule.name, rule.period, now_us)) for rule in found)


class Admission:
    """One call that was let in; implements `schemas.relay.Meter`. `end` it exactly once."""

    __slots__ = ("_account", "_bounds", "_clock", "_gate", "_reported", "_tokens", "_windows")

    def __init__(
        self,
        gate: RateGate,
        clock: Clock,
        account: str | None,
        bounds: tuple[Bound, ...],
        tokens: int,
    ) -> None:
        self._gate: Final = gate
        self._clock: Final = clock
        self._account: Final = account
        self._bounds: Final = bounds
        self._tokens: Final = tokens
        self._windows: tuple[int, ...] = ()
        self._reported = False

    def count(self, now_us: int) -> None:
        """The call itself, and the estimate of its tokens."""
        self._windows = tuple(
            bound.counter.add(_amount(bound.rule, self._tokens), now_us) for bound in self._bounds
        )
        for bound in self._bounds:
            self._gate.counted(bound)

    def held(self, group: str) -> None:
        if self._account is not None:
            self._gate.learn(self._account, group)

    def used(self, usage: Usage) -> None:
        if not self._reported:
            self._reported = True
            self._correct_tokens(usage.input_total + usage.output)

    def end(self) -> None:
        """The call is over: what it had open is closed, and what produced nothing used nothing."""
        if not self._reported:
            self._correct_tokens(0)
        now_us = self._clock.now_us()
        for bound in self._bounds:
            if bound.rule.unit == "open":
                bound.counter.add(-1, now_us)

    def headers(self) -> Headers:
        """The tightest rate as it stands now; empty where none applies."""
        now_us = self._clock.now_us()
        timed = [bound for bound in self._bounds if bound.rule.period is not None]
        if not timed:
            return []
        tightest = min(timed, key=lambda bound: bound.left(now_us) / bound.rule.limit)
        reset_s = _seconds(tightest.counter.resets_in_us(now_us))
        return rate_headers(tightest.rule.limit, tightest.left(now_us), reset_s)

    def _correct_tokens(self, real: int) -> None:
        now_us = self._clock.now_us()
        for bound, window in zip(self._bounds, self._windows, strict=True):
            if bound.rule.unit == "tokens":
                bound.counter.correct(real - self._tokens, window, now_us)
                self._gate.counted(bound)


def _fitting_estimate(bounds: tuple[Bound, ...], request: ChatRequest, now_us: int) -> int:
    """Input tokens to count now; looked at closely only where the rough guess does not fit."""
    tokens = [bound for bound in bounds if bound.rule.unit == "tokens"]
    if not tokens:
        return 0
    estimate, left = rough_estimate(request), min(bound.left(now_us) for bound in tokens)
    return estimate if estimate <= left else min(estimate, closer_estimate(request))


def _amount(rule: LimitRule, tokens: int) -> int:
    return tokens if rule.unit == "tokens" else 1


def _refusal(reached: list[Bound], tokens: int, now_us: int) -> RateLimited:
    """What the client is told: of several limits, the one that it has to wait for longest."""
    bound = max(reached, key=lambda one: one.counter.resets_in_us(now_us))
    rule = bound.rule
    whom = _WHOM.get(rule.scope) or f"the {rule.scope} `{rule.id}`"
    if rule.period is None:
        said = f"Limit of {rule.limit} requests at once for {whom} reached; wait for one to end."
        return RateLimited(said, retry_after_s=OPEN_RETRY_S, limit=rule.limit)
    kind = rule.unit
    what = f"{rule.limit} {rule.unit} per {rule.period.word} for {whom}"
    if tokens > rule.limit and kind == "tokens":
        said = f"This request counts as {tokens} tokens, more than the limit of {what} ever allows."
        return RateLimited(said, retry_after_s=None, limit=rule.limit, kind=kind)
    reset_s = _seconds(bound.counter.resets_in_us(now_us))
    said = f"Limit of {what} reached; try again in {reset_s} s."
    return RateLimited(said, retry_after_s=reset_s, limit=rule.limit, kind=kind)


def _seconds(left_us: int) -> int:
    """Rounded up: who comes back then finds a new window."""
    return max(1, -(-left_us // 1_000_000))
