"""Grants: points for an account and the sealed reason for them, as one unit; repeatable by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from backend.identity.service import Identity, identity_refusal
from backend.journal.commands import (
    NO_BODY,
    AlreadyDone,
    Command,
    Decision,
    Landed,
    Refused,
    Standing,
)
from backend.journal.idempotency import command_id_of, length_prefixed
from backend.journal.reader import find_command
from backend.journal.units import Part, joined
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from backend.kit.secrets import SiteSecret
from backend.ledger.decide import decide_grant
from backend.ledger.refusals import NoSuchAccount, TooMuch
from schemas.errors import BadRequest, Conflict, IdempotencyConflict, NotFound
from schemas.event import Recorded
from schemas.ids import PersonId, StreamName, account_stream
from schemas.ledger import GrantKind, PointsGranted
from schemas.money import MicroPoints
from schemas.registry import decode

ROUTE: Final = "grant"
KEY_CHARS_MAX: Final = 255


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
        if idempotency_key is None:
            command_id = self._writer.new_id()
        elif 1 <= len(idempotency_key) <= KEY_CHARS_MAX:
            command_id = command_id_of(actor, ROUTE, idempotency_key)
        else:
            raise BadRequest(f"An idempotency key has 1 to {KEY_CHARS_MAX} characters.")
        reason = await self._identity.reason_part(asked.person, command_id, asked.reason)
        unit = joined((_granting(asked, actor), reason))
        body_hash = self._body_hash(asked)
        outcome = await self._writer.submit(
            Command(command_id, unit.streams, unit.decide, body_hash)
        )
        match outcome:
            case Landed():
                async with self._pool.connection() as connection:
                    found = await find_command(connection, command_id)
                assert found is not None, "it landed a moment ago"
                return _stored(found[1], repeated=False)
            case AlreadyDone(earlier_hash, rows):
                stored = _stored(rows, repeated=True)
                same = earlier_hash == body_hash or (
                    earlier_hash == NO_BODY and _agrees(stored, asked)
                )
                if not same:
                    raise IdempotencyConflict(
                        "This idempotency key was used for another grant; use a new key."
                    )
                return stored
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


def _agrees(stored: Granted, asked: GrantAsked) -> bool:
    """For a command that came back from Kafka, where its body's hash is not: as far as is known."""
    return (stored.stream, stored.amount_upt) == (account_stream(asked.person), asked.amount_upt)


def _stored(rows: Sequence[Recorded], *, repeated: bool) -> Granted:
    for row in rows:
        event = decode(row)
        if isinstance(event, PointsGranted):
            return Granted(event.amount_upt, StreamName(row.stream), row.version, repeated)
    raise AssertionError("a grant lands as PointsGranted on its account")
