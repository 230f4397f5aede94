"""Puts decisions of several domains into one command: they land together or not at all. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backend.journal.commands import Accept, Decide, Decision, Lease, Refuse, Standing


class Part(msgspec.Struct, frozen=True):
    """One domain's share of a command: its streams and what it decides about them."""

    streams: tuple[str, ...]
    decide: Decide


def joined(parts: Sequence[Part]) -> Part:
    """All parts as one. The first refusal refuses the whole; no stream may be in two parts.

    A part may accept without an event where it only reads; the whole needs one event.
    """
    streams = tuple(stream for part in parts for stream in part.streams)
    if len(set(streams)) < len(streams):
        raise ValueError("a stream belongs to one part of a unit")

    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        events: list[tuple[int, object]] = []
        leases: list[Lease] = []
        first = 0
        for part in parts:
            own = standings[first : first + len(part.streams)]
            decision = part.decide(own, at_us)
            if isinstance(decision, Refuse):
                return decision
            events.extend((first + index, event) for index, event in decision.events)
            leases.extend(decision.leases)
            first += len(part.streams)
        return Accept(tuple(events), tuple(leases))

    return Part(streams, decide)
