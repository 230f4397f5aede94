"""Grants: points for an account and the sealed reason for them, as one unit; repeatable by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from backend.identity.service import Identity, identity_refusal
from backend.journal.commands import Command, Decision, Refused, Standing
from backend.journal.idempotency import length_prefixed
from backend.journal.repeatable import Happened, once, repeatable_id
from backend.journal.units import Part, joined
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from backend.kit.secrets import SiteSecret
from backend.ledger.decide import decide_grant
from backend.ledger.refusals import NoSuchAccount, TooMuch
from schemas.errors import BadRequest, Conflict, NotFound
from schemas.event import Recorded
from schemas.ids import PersonId, StreamName, account_stream
from schemas.ledger import GrantKind, PointsGranted
from schemas.money import MicroPoints
from schemas.registry import decode

ROUTE: Final = "grant"


class GrantAsked(msgspec.Struct, frozen=True):
    person: PersonId
    amount_upt: MicroPoints
    reason: str


class Granted(msgspec.Struct, frozen=True):
    """A grant in the log: the same answer however often it is asked for under one key."""

    amount_upt: MicroPoints
    stream: StreamName
    version: int
    repeated: bool


class Grants:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(self, writer: Writer, pool: Pool, identity: Identity, secret: SiteSecret) -> None:
        self._writer: Final = writer
        self._pool: Final = pool
        self._identity: Final = identity
        self._secret: Final = secret

    async def grant(
        self, asked: GrantAsked, *, actor: str, idempotency_key: str | None = None
    ) -> Granted:
        """Adds points. Raises BadRequest, NotFound; IdempotencyConflict for a used key."""
        command_id = repeatable_id(self._writer, actor, ROUTE, idempotency_key)
        reason = await self._identity.reason_part(asked.person, command_id, asked.reason)
        unit = joined((_granting(asked, actor), reason))
        command = Command(command_id, unit.streams, unit.decide, self._body_hash(asked))
        done = await once(
            self._writer, self._pool, command, "grant", lambda rows: _agrees(rows, asked)
        )
        match done:
            case Happened(rows, repeated):
                return _stored(rows, repeated=repeated)
            case Refused(NoSuchAccount()):
                raise NotFound("This user has no account.")
            case Refused(TooMuch()):
                raise BadRequest("A grant is more than zero, and an account holds no such sum.")
            case Refused(reason):
                raise identity_refusal(reason) or Conflict("This grant was refused.")

    def _body_hash(self, asked: GrantAsked) -> bytes:
        # Keyed: a short reason must not be found out by hashing guesses.
        body = length_prefixed(str(asked.person), str(asked.amount_upt), asked.reason)
        return self._secret.hmac("grant body", body)


def _granting(asked: GrantAsked, actor: str) -> Part:
    def decide(standings: tuple[Standing, ...], at_us: int) -> Decision:
        standing = standings[0]
        return decide_grant(
            standing.state, standing.version, asked.amount_upt, GrantKind.OPERATOR, actor
        )

    return Part((account_stream(asked.person),), decide)


def _agrees(rows: Sequence[Recorded], asked: GrantAsked) -> bool:
    """For a command that came back from Kafka, where its body's hash is not: as far as is known."""
    stored = _stored(rows, repeated=True)
    return (stored.stream, stored.amount_upt) == (account_stream(asked.person), asked.amount_upt)


def _stored(rows: Sequence[Recorded], *, repeated: bool) -> Granted:
    for row in rows:
        event = decode(row)
        if isinstance(event, PointsGranted):
            return Granted(event.amount_upt, StreamName(row.stream), row.version, repeated)
    raise AssertionError("a grant lands as PointsGranted on its account")
