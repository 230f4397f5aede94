"""Decides a batch of commands one after another and lays out the one append that records them.

Pure: states, time and event ids come in. Nothing here knows what a stream means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from backend.journal.append import (
    AppendInput,
    CommandIn,
    EventIn,
    LeaseIn,
    StreamIn,
    at_text,
    text_of,
)
from backend.journal.chain import event_hash
from backend.journal.commands import (
    Accept,
    Command,
    Lease,
    LeaseClose,
    LeaseOpen,
    LeaseSweep,
    Refuse,
    Standing,
)
from backend.journal.fold import Folds
from schemas.event import shard_of, topic_of
from schemas.registry import encode


class Head(msgspec.Struct, frozen=True):
    """Where a stream stands: its version (0: nothing yet), chain hash and state."""

    version: int
    hash: bytes
    state: Any


class _Draft(msgspec.Struct, frozen=True, gc=False):
    event_id: UUID
    command_id: UUID
    stream: str
    version: int
    type: str
    schema: int
    payload: bytes
    prev_hash: bytes
    hash: bytes


class Batch:
    """Commands decided on top of one another; `heads` must hold every stream they name."""

    def __init__(
        self,
        folds: Folds,
        heads: Mapping[str, Head],
        at_us: int,
        new_event_id: Callable[[], UUID],
    ) -> None:
        self._folds: Final = folds
        self._before: Final = heads
        self._at_us: Final = at_us
        self._at: Final = at_text(at_us)
        self._new_event_id: Final = new_event_id
        self._now: dict[str, Head] = dict(heads)
        self._unit_of: dict[str, int] = {}
        self._members: dict[int, list[str]] = {}
        self._drafts: list[_Draft] = []
        self._commands: list[tuple[Command, _Draft]] = []
        self._leases: list[tuple[str, Lease]] = []
        self._state_bytes: dict[str, int] = {}

    def add(self, command: Command) -> Accept | Refuse:
        """Decides one command; an accepted one changes what the next ones see.

        Raises what `decide` or `apply` raise, leaving the batch as it was.
        """
        standings = tuple(
            Standing(stream, self._now[stream].version, self._now[stream].state)
            for stream in command.streams
        )
        decision = command.decide(standings, self._at_us)
        if isinstance(decision, Refuse):
            return decision
        if not decision.events:
            raise ValueError("a command that is accepted records at least one event")
        drafts, heads = self._draft(command, decision)
        unread = [s for s in command.streams if self._now[s].version == 0 and s not in heads]
        if unread:
            raise ValueError(f"{unread[0]}: a stream that does not exist cannot only be read")
        self._now.update(heads)
        self._tie(command.streams)
        self._drafts.extend(drafts)
        home = next((d for d in drafts if d.stream == command.streams[0]), drafts[0])
        self._commands.append((command, home))
        self._leases.extend((command.streams[0], lease) for lease in decision.leases)
        return decision

    def unit_of(self, stream: str) -> int | None:
        """The unit a stream is part of, or None if nothing accepted names it."""
        return self._unit_of.get(stream)

    def head_of(self, stream: str) -> Head:
        """The stream's head as it will be once its unit has landed."""
        return self._now[stream]

    def state_bytes_of(self, stream: str) -> int:
        """Size of the encoded state, once laid out."""
        return self._state_bytes.get(stream, 0)

    def event_ids(self) -> dict[UUID, set[UUID]]:
        """The ids that an append gives to the events of each accepted command."""
        found: dict[UUID, set[UUID]] = {}
        for draft in self._drafts:
            found.setdefault(draft.command_id, set()).add(draft.event_id)
        return found

    def touched(self) -> list[str]:
        """Every stream that the append names."""
        return list(self._unit_of)

    def laid_out(self) -> AppendInput:
        """The statement's input."""
        units = self._unit_of
        return AppendInput(
            streams=[self._stream_in(stream, unit) for stream, unit in sorted(units.items())],
            events=[self._event_in(i, draft) for i, draft in enumerate(self._drafts)],
            commands=[
                CommandIn(
                    command.command_id,
                    units[home.stream],
                    text_of(command.body_hash),
                    home.stream,
                    home.version,
                )
                for command, home in self._commands
            ],
            leases=[_lease_in(lease, stream, units[stream]) for stream, lease in self._leases],
        )

    def _draft(self, command: Command, decision: Accept) -> tuple[list[_Draft], dict[str, Head]]:
        heads: dict[str, Head] = {}
        drafts: list[_Draft] = []
        for index, event in decision.events:
            stream = command.streams[index]
            head = heads.get(stream) or self._now[stream]
            version = head.version + 1
            state = self._folds.of(stream).apply(head.state, event, version, self._at_us)
            type_name, schema = type(event).__name__, event.SCHEMA
            event_id, payload = self._new_event_id(), encode(event)
            digest = event_hash(
                head.hash,
                stream,
                version,
                event_id,
                command.command_id,
                topic_of(stream),
                type_name,
                schema,
                self._at_us,
                payload,
            )
            drafts.append(
                _Draft(
                    event_id,
                    command.command_id,
                    stream,
                    version,
                    type_name,
                    schema,
                    payload,
                    head.hash,
                    digest,
                )
            )
            heads[stream] = Head(version, digest, state)
        return drafts, heads

    def _tie(self, streams: tuple[str, ...]) -> None:
        """Streams of one command share a unit, and so do all units they were part of before."""
        known = {self._unit_of[s] for s in streams if s in self._unit_of}
        unit = min(known, default=len(self._members))
        members = self._members.setdefault(unit, [])
        for other in known - {unit}:
            moved = self._members[other]
            self._members[other] = []
            members.extend(moved)
            for stream in moved:
                self._unit_of[stream] = unit
        for stream in streams:
            if self._unit_of.setdefault(stream, unit) == unit and stream not in members:
                members.append(stream)

    def _stream_in(self, stream: str, unit: int) -> StreamIn:
        before, now = self._before[stream], self._now[stream]
        changed = now.version > before.version
        state = self._folds.of(stream).encode(now.state) if changed else b""
        self._state_bytes[stream] = len(state)
        return StreamIn(
            stream, unit, before.version, now.version, text_of(now.hash), text_of(state)
        )

    def _event_in(self, ordinal: int, draft: _Draft) -> EventIn:
        return EventIn(
            ordinal,
            self._unit_of[draft.stream],
            draft.event_id,
            draft.command_id,
            topic_of(draft.stream),
            shard_of(draft.stream),
            draft.stream,
            draft.version,
            draft.type,
            draft.schema,
            self._at,
            text_of(draft.payload),
            text_of(draft.prev_hash),
            text_of(draft.hash),
        )


def _lease_in(lease: Lease, stream: str, unit: int) -> LeaseIn:
    match lease:
        case LeaseOpen(request_id, seconds):
            return LeaseIn(request_id, unit, "open", stream, seconds=seconds)
        case LeaseClose(request_id):
            return LeaseIn(request_id, unit, "close", stream)
        case LeaseSweep(request_id, generation):
            return LeaseIn(request_id, unit, "sweep", stream, generation=generation)
