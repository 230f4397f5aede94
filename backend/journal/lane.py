"""One connection that decides and commits batches of commands, one append at a time.

Whatever does not land goes back to its source; nothing is answered from state that was not
confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from uuid import UUID

import structlog

from backend.journal.append import AppendResult, Taken, append, find_taken
from backend.journal.batch import Batch, Head
from backend.journal.commands import (
    AlreadyDone,
    Command,
    Landed,
    LostRace,
    Outcome,
    Refuse,
    Refused,
)
from backend.journal.fold import Folds
from backend.journal.heads import HeadCache, load_heads
from backend.journal.reader import find_command, site_of
from backend.kit.postgres import Connection, ConnectionLost, DatabaseError, RolledBack, connect
from backend.kit.tasks import vital
from schemas.errors import Unavailable
from schemas.registry import decode

APPEND_TIMEOUT_S: Final = 8.0
ALONE_ATTEMPTS_MAX: Final = 3
RECONNECT_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
PLAN_ONCE: Final = "SET plan_cache_mode = force_generic_plan"
BY_INDEX: Final = "SET enable_seqscan = off"

_log = structlog.get_logger("journal.lane")


class Pending:
    """A command on its way, with what earlier attempts have shown."""

    __slots__ = ("attempts", "command", "future", "needs_read", "sent_events")

    def __init__(self, command: Command, future: asyncio.Future[Outcome]) -> None:
        self.command = command
        self.future = future
        self.attempts = 0
        self.needs_read = False
        self.sent_events: set[UUID] = set()
        """Of appends whose fate is unknown: finding one of these in the log means we did it."""

    def resolve(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Source(Protocol):
    """Where a lane's commands come from and where they go back to."""

    def take(self) -> list[Pending]: ...
    def again(self, pendings: Sequence[Pending]) -> None: ...
    def one_by_one(self, pendings: Sequence[Pending]) -> None: ...
    def landed(self, commands: int) -> None: ...


class Round:
    """One batch with its bookkeeping: who was accepted, who refused, which state was read for
    it.
    """

    def __init__(self, batch: Batch, read: frozenset[str]) -> None:
        self.batch: Final = batch
        self.read: Final = read
        self.accepted: list[tuple[Pending, tuple[object, ...]]] = []
        self.refused: list[tuple[Pending, object]] = []

    def decide(self, pending: Pending) -> None:
        """A decision that raises is that command's failure alone."""
        try:
            decision = self.batch.add(pending.command)
        except Exception as error:  # noqa: BLE001 - last resort: a programmer's error must not stop the writer
            _log.error("decision failed", command=str(pending.command.command_id), exc_info=True)
            pending.fail(error)
            return
        if isinstance(decision, Refuse):
            self.refused.append((pending, decision.reason))
        else:
            self.accepted.append((pending, tuple(event for _, event in decision.events)))

    def fate_is_unknown(self) -> None:
        """The append was sent and no answer came: it may have landed."""
        sent = self.batch.event_ids()
        for pending, _ in self.accepted:
            pending.sent_events |= sent[pending.command.command_id]

    def confirmed(self, command: Command, result: AppendResult) -> bool:
        """Whether every stream the command saw was current: just read and untouched, or landed."""
        for stream in command.streams:
            unit = self.batch.unit_of(stream)
            if unit not in result.landed if unit is not None else stream not in self.read:
                return False
        return True


class Lane:
    """Runs in a task of its own; `wake` it when its source has something."""

    def __init__(
        self,
        database_url: str,
        folds: Folds,
        cache: HeadCache,
        now_us: Callable[[], int],
        new_event_id: Callable[[], UUID],
        source: Source,
    ) -> None:
        self._url: Final = database_url
        self._folds: Final = folds
        self._cache: Final = cache
        self._now_us: Final = now_us
        self._new_event_id: Final = new_event_id
        self._source: Final = source
        self._wake: Final = asyncio.Event()
        self._stopping = False
        self._connection: Connection | None = None
        self._site_id: UUID | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = vital(self._run(), "writer")

    async def stop(self) -> None:
        """Ends once the source is empty."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await self._disconnect()

    def wake(self) -> None:
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            while pendings := self._source.take():
                if await self._commit(pendings):
                    failures = 0
                    continue
                failures += 1
                await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S)) - 1])

    async def _commit(self, pendings: list[Pending]) -> bool:
        """One round; False when Postgres did not answer and the commands are queued again."""
        pendings = self._without_twins(pendings)
        sent: Round | None = None
        try:
            async with asyncio.timeout(APPEND_TIMEOUT_S):
                connection = await self._connected()
                round_ = await self._decided(connection, pendings)
                result = AppendResult(None, frozenset(), ())
                if round_.accepted:
                    given = round_.batch.laid_out()
                    sent = round_
                    result = await append(connection, given)
                await self._resolve(connection, round_, result)
        except RolledBack as error:
            _log.info("append rolled back", error=type(error).__name__, commands=len(pendings))
            self._once_more(pendings, None)
        except (ConnectionLost, TimeoutError, OSError) as error:
            _log.warning("append not answered", error=type(error).__name__, commands=len(pendings))
            await self._disconnect()
            self._once_more(pendings, sent)
            return False
        except DatabaseError as error:
            self._batch_failed(pendings, error)
        except Exception as error:  # noqa: BLE001 - last resort: one unreadable stream must not stop the writer
            _log.error("batch failed", commands=len(pendings), exc_info=True)
            if sent is not None:
                sent.fate_is_unknown()
            self._batch_failed(pendings, error)
        return True

    def _without_twins(self, pendings: list[Pending]) -> list[Pending]:
        """The first of each command id; a twin waits until that one's fate is known."""
        first: dict[UUID, Pending] = {}
        for pending in pendings:
            first.setdefault(pending.command.command_id, pending)
        if len(first) < len(pendings):
            self._source.again([p for p in pendings if first[p.command.command_id] is not p])
        return list(first.values())

    def _once_more(self, pendings: list[Pending], sent: Round | None) -> None:
        """Queues again what has no answer, to be decided on state read for it."""
        if sent is not None:
            sent.fate_is_unknown()
        self._forget(pendings)
        self._source.again([pending for pending in pendings if not pending.future.done()])

    async def _decided(self, connection: Connection, pendings: list[Pending]) -> Round:
        for pending in pendings:
            if pending.needs_read:
                self._forget((pending,))
        heads: dict[str, Head] = {}
        missing: list[str] = []
        for stream in {s: None for p in pendings for s in p.command.streams}:
            head = self._cache.get(stream)
            if head is None:
                missing.append(stream)
            else:
                heads[stream] = head
        if missing:
            assert self._site_id is not None
            loaded = await load_heads(connection, self._folds, self._site_id, missing)
            for stream, (head, size) in loaded.items():
                heads[stream] = head
                if head.version > 0:
                    self._cache.put(stream, head, size)
        # After the heads: what lands between the two is found, and heads without it do not match.
        pendings = await self._without_landed(connection, pendings)
        batch = Batch(self._folds, heads, self._now_us(), self._new_event_id)
        round_ = Round(batch, frozenset(missing))
        for pending in pendings:
            round_.decide(pending)
        return round_

    async def _without_landed(
        self, connection: Connection, pendings: list[Pending]
    ) -> list[Pending]:
        """Answers those that an append without an answer has recorded after all.

        On top of itself a command cannot be decided: a request that is held is not held again.
        """
        blind = {p.command.command_id: p for p in pendings if p.sent_events}
        if not blind:
            return pendings
        for entry in await find_taken(connection, list(blind)):
            await self._resolve_taken(connection, blind[entry.command_id], entry)
        return [pending for pending in pendings if not pending.future.done()]

    async def _resolve(self, connection: Connection, round_: Round, result: AppendResult) -> None:
        if result.read_only_reason is not None:
            sentence = f"The site is read-only: {result.read_only_reason}"
            for pending, _ in round_.accepted:
                pending.fail(Unavailable(sentence, retry_after_s=60))
        self._remember(round_, result)
        known = {entry.command_id: entry for entry in result.taken}
        again: list[Pending] = []
        taken: list[Pending] = []
        landed = 0
        for pending, events in round_.accepted:
            command = pending.command
            if command.command_id in known:
                taken.append(pending)
            elif round_.batch.unit_of(command.streams[0]) in result.landed:
                heads = [(s, round_.batch.head_of(s)) for s in command.streams]
                versions = tuple((stream, head.version) for stream, head in heads)
                pending.resolve(Landed(events, versions, tuple(h.state for _, h in heads)))
                landed += 1
            elif command.tries_once:
                pending.resolve(Refused(LostRace()))
            else:
                again.append(pending)
        if landed:
            self._source.landed(landed)
        again.extend(await self._resolve_refused(connection, round_, result))
        for pending in taken:
            await self._resolve_taken(connection, pending, known[pending.command.command_id])
        if again:
            self._source.again([p for p in again if not p.future.done()])

    async def _resolve_refused(
        self, connection: Connection, round_: Round, result: AppendResult
    ) -> list[Pending]:
        """Answers refusals; returns those that rest on state nobody confirmed.

        A command that landed before is often refused when it is decided again, so the log is asked
        first.
        """
        confirmed: list[tuple[Pending, object]] = []
        again: list[Pending] = []
        for pending, reason in round_.refused:
            if round_.confirmed(pending.command, result):
                confirmed.append((pending, reason))
            else:
                again.append(pending)
        if confirmed:
            ids = [pending.command.command_id for pending, _ in confirmed]
            known = {entry.command_id: entry for entry in await find_taken(connection, ids)}
            for pending, reason in confirmed:
                entry = known.get(pending.command.command_id)
                if entry is None:
                    pending.resolve(Refused(reason))
                else:
                    await self._resolve_taken(connection, pending, entry)
        return again

    def _remember(self, round_: Round, result: AppendResult) -> None:
        for stream in round_.batch.touched():
            if round_.batch.unit_of(stream) not in result.landed:
                self._cache.drop(stream)
            elif size := round_.batch.state_bytes_of(stream):
                self._cache.put(stream, round_.batch.head_of(stream), size)

    async def _resolve_taken(self, connection: Connection, pending: Pending, entry: Taken) -> None:
        """Our own lost attempt did land, or someone used this id before."""
        found = await find_command(connection, entry.command_id)
        assert found is not None, "a taken command has its events"
        body_hash, rows = found
        if any(row.event_id in pending.sent_events for row in rows):
            events = tuple(decode(row) for row in rows)
            pending.resolve(Landed(events, ((rows[-1].stream, rows[-1].version),)))
        else:
            pending.resolve(AlreadyDone(body_hash, tuple(rows)))

    def _batch_failed(self, pendings: list[Pending], error: Exception) -> None:
        """Postgres refused the statement, or it could not even be made. Alone, a command meets its
        own error.
        """
        _log.warning("append refused", error=type(error).__name__, commands=len(pendings))
        self._forget(pendings)
        waiting = [pending for pending in pendings if not pending.future.done()]
        for pending in waiting:
            pending.attempts += 1
        lonely = [p for p in waiting if len(pendings) == 1 and p.attempts > ALONE_ATTEMPTS_MAX]
        for pending in lonely:
            if isinstance(error, DatabaseError):
                error = Unavailable("The ledger's database refused this.", retry_after_s=2)
            pending.fail(error)
        self._source.one_by_one([p for p in waiting if p not in lonely])

    def _forget(self, pendings: Sequence[Pending]) -> None:
        for pending in pendings:
            for stream in pending.command.streams:
                self._cache.drop(stream)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = await connect(self._url, application="suanpan writer")
            await connection.execute(PLAN_ONCE)
            await connection.execute(BY_INDEX)
            self._site_id, _, _ = await site_of(connection)
            self._connection = connection
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
