"""A command under its caller's own key: asked again it happens once, and is answered alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import msgspec

from backend.journal.commands import NO_BODY, AlreadyDone, Command, Landed, Refused
from backend.journal.idempotency import command_id_of
from backend.journal.reader import find_command
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from schemas.errors import BadRequest, IdempotencyConflict
from schemas.event import Recorded

KEY_CHARS_MAX: Final = 255


class Happened(msgspec.Struct, frozen=True):
    """What a command recorded on its home stream, now or when it was asked for before."""

    rows: tuple[Recorded, ...]
    repeated: bool


def repeatable_id(writer: Writer, actor: str, route: str, key: str | None) -> UUID:
    """The one id that `actor`'s key names on this route; a fresh one without a key.

    Raises BadRequest.
    """
    if key is None:
        return writer.new_id()
    if 1 <= len(key) <= KEY_CHARS_MAX:
        return command_id_of(actor, route, key)
    raise BadRequest(f"An idempotency key has 1 to {KEY_CHARS_MAX} characters.")


async def once(
    writer: Writer,
    pool: Pool,
    command: Command,
    what: str,
    agrees: Callable[[Sequence[Recorded]], bool],
) -> Happened | Refused:
    """Records a command, or finds what it recorded before.

    `what` it is, for people: `grant`. `agrees` tells whether the recorded events are what is asked
    now: for a command that came back from Kafka, where the hash of its body is not. Raises
    IdempotencyConflict for a key that was used for something else.
    """
    match await writer.submit(command):
        case Landed():
            # Commands that land together share what the outcome says: the log is exact.
            async with pool.connection() as connection:
                found = await find_command(connection, command.command_id)
            assert found is not None, "it landed a moment ago"
            return Happened(tuple(found[1]), repeated=False)
        case AlreadyDone(earlier_hash, rows):
            same = earlier_hash == command.body_hash or (earlier_hash == NO_BODY and agrees(rows))
            if not same:
                raise IdempotencyConflict(
                    f"This idempotency key was used for another {what}; use a new key."
                )
            return Happened(rows, repeated=True)
        case Refused() as refused:
            return refused
