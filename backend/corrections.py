"""Corrections: a new entry that points at an old one, and the sealed reason, as one unit.

Repeatable by key. History is never edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec

from backend.identity.service import Identity, identity_refusal
from backend.journal.commands import Command, Decision, Refused, Standing
from backend.journal.idempotency import length_prefixed
from backend.journal.reader import read_stream
from backend.journal.repeatable import Happened, once, repeatable_id
from backend.journal.units import Part, joined
from backend.journal.writer import Writer
from backend.kit.postgres import Pool, fetch_one
from backend.kit.secrets import SiteSecret
from backend.ledger.decide_correction import CorrectionAsked, NoSuchEntry, decide_correction
from backend.ledger.refusals import MissingPoints, NoSuchAccount, TooMuch
from schemas.errors import BadRequest, Conflict, InsufficientPoints, NotFound
from schemas.event import Recorded
from schemas.ids import PersonId, StreamName, account_stream
from schemas.ledger import PointsCorrected
from schemas.money import MicroPoints, format_points
from schemas.registry import Event, decode

ROUTE: Final = "correct"
VERSION_OF: Final = """
SELECT version FROM event_log WHERE stream = %(stream)s AND event_id = %(event_id)s LIMIT 1
"""


class CorrectAsked(msgspec.Struct, frozen=True):
    person: PersonId
    entry: UUID
    """The event that is corrected."""
    amount_upt: MicroPoints
    """What is added; negative: taken."""
    reason: str


class Corrected(msgspec.Struct, frozen=True):
    """A correction in the log: the same answer however often it is asked for under one key."""

    amount_upt: MicroPoints
    entry: UUID
    event_id: UUID
    stream: StreamName
    version: int
    repeated: bool


class Corrections:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(self, writer: Writer, pool: Pool, identity: Identity, secret: SiteSecret) -> None:
        self._writer: Final = writer
        self._pool: Final = pool
        self._identity: Final = identity
        self._secret: Final = secret

    async def correct(
        self, asked: CorrectAsked, *, actor: str, idempotency_key: str | None = None
    ) -> Corrected:
        """Adds or takes points. Raises BadRequest, NotFound, InsufficientPoints; and
        IdempotencyConflict for a used key.
        """
        command_id = repeatable_id(self._writer, actor, ROUTE, idempotency_key)
        stream = account_stream(asked.person)
        entry = await self._entry(stream, asked.entry)
        reason = await self._identity.reason_part(asked.person, command_id, asked.reason)
        unit = joined((_correcting(stream, asked, entry, actor), reason))
        command = Command(command_id, unit.streams, unit.decide, self._body_hash(asked))
        done = await once(
            self._writer, self._pool, command, "correction", lambda rows: _agrees(rows, asked)
        )
        match done:
            case Happened(rows, repeated):
                return _stored(rows, repeated=repeated)
            case Refused(MissingPoints(missing_upt)):
                raise InsufficientPoints(
                    f"A balance is never below zero: {format_points(missing_upt)} points "
                    "are missing for this correction."
                )
            case Refused(NoSuchAccount()):
                raise NotFound("This user has no account.")
            case Refused(NoSuchEntry()):
                raise NotFound(f"This user's statement has no entry {asked.entry}.")
            case Refused(TooMuch()):
                raise BadRequest("A correction is not zero, and an account holds no such sum.")
            case Refused(refusal):
                raise identity_refusal(refusal) or Conflict("This correction was refused.")

    async def _entry(self, stream: str, event_id: UUID) -> Event | None:
        """The event that is to be corrected, from the account's own stream; it never changes."""
        async with self._pool.connection() as connection:
            found = await fetch_one(
                connection, VERSION_OF, {"stream": stream, "event_id": event_id}
            )
            if found is None:
                return None
            rows = await read_stream(connection, stream, found[0], 1)
        return decode(rows[0]) if rows and rows[0].event_id == event_id else None

    def _body_hash(self, asked: CorrectAsked) -> bytes:
        # Keyed: a short reason must not be found out by hashing guesses.
        body = length_prefixed(
            str(asked.person), str(asked.entry), str(asked.amount_upt), asked.reason
        )
        return self._secret.hmac("correction body", body)


def _correcting(stream: StreamName, asked: CorrectAsked, entry: Event | None, actor: str) -> Part:
    correction = CorrectionAsked(asked.amount_upt, asked.entry, actor)

    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        standing = standings[0]
        return decide_correction(standing.state, standing.version, correction, entry)

    return Part((stream,), decide)


def _agrees(rows: Sequence[Recorded], asked: CorrectAsked) -> bool:
    """What can be told of the earlier body where its hash was lost: a restore has none."""
    stored = _stored(rows, repeated=True)
    before = (stored.stream, stored.entry, stored.amount_upt)
    return before == (account_stream(asked.person), asked.entry, asked.amount_upt)


def _stored(rows: Sequence[Recorded], *, repeated: bool) -> Corrected:
    for row in rows:
        event = decode(row)
        if isinstance(event, PointsCorrected):
            return Corrected(
                event.amount_upt,
                event.corrects_event_id,
                row.event_id,
                StreamName(row.stream),
                row.version,
                repeated,
            )
    raise AssertionError("a correction lands as PointsCorrected on its account")
