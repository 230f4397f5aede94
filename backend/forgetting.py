"""Forgets a person: one unit in the log, then everything of theirs that can be deleted.

The unit decides. What follows may be cut off anywhere: each step may be done again, and
`finish_all` does. Points are not paid out: they stay in the books, on an account nobody can use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backend.identity.forget import (
    AlreadyForgotten,
    LastAdministrator,
    decide_end_key,
    decide_forget,
)
from backend.identity.names import name_stream
from backend.identity.person import FORGOTTEN_MARK, PERSON, Person
from backend.identity.service import IDENTITY_FOLDS, Identity
from backend.journal.commands import Command, Landed, Refused
from backend.journal.units import Part, joined
from backend.journal.view import states_of_kind
from backend.journal.writer import Writer
from backend.kit.postgres import Pool, fetch_all
from backend.ledger.exports import erase_exports
from backend.opening import remove_trial_file
from schemas.errors import Conflict, NotFound, SuanpanError
from schemas.ids import KeyId, PersonId, id_of, key_stream, person_stream

KEYS_IN_UNIT_MAX: Final = 200
"""More keys than this end one by one, right after the unit."""
PAGE_PERSONS: Final = 200
FIND_UNFINISHED: Final = """
SELECT stream FROM streams
WHERE stream > %(after)s AND stream < 'person;' AND position(%(mark)s::bytea IN state) > 0
    AND (NOT EXISTS (SELECT FROM forgettings f WHERE 'person:' || f.account = stream)
        OR EXISTS (SELECT FROM data_keys d WHERE 'person:' || d.account = stream))
ORDER BY stream LIMIT %(count_max)s
"""
FINISHED: Final = "INSERT INTO forgettings (account) VALUES (%(account)s) ON CONFLICT DO NOTHING"
ACTOR: Final = "forgetting"

_log = structlog.get_logger("forgetting")


class Grounds(msgspec.Struct, frozen=True):
    """What an eraser may use."""

    writer: Writer
    pool: Pool
    identity: Identity
    data_dir: Path


class Eraser(msgspec.Struct, frozen=True):
    """A kind of thing that a forgotten person leaves behind, and how it is deleted.

    `erase` may run any number of times, and finds by itself what is left.
    """

    what: str
    erase: Callable[[Grounds, PersonId, Person], Awaitable[None]]


class Forgotten(msgspec.Struct, frozen=True):
    person: PersonId
    keys_revoked: int


async def _end_keys(grounds: Grounds, person: PersonId, state: Person) -> None:
    """Those that were made while the unit was decided, or were too many for it."""
    for key in await _living_keys(grounds.identity, person):
        await grounds.identity.revoke_key(key, ACTOR)


async def _delete_data_key(grounds: Grounds, person: PersonId, state: Person) -> None:
    await grounds.identity.data_keys.forget(person)


async def _remove_exports(grounds: Grounds, person: PersonId, state: Person) -> None:
    """What they asked for and what others asked for of theirs; a job under way loses its row, and
    with it the right to publish its file."""
    await erase_exports(grounds.pool, grounds.data_dir, person)


async def _remove_trial_file(grounds: Grounds, person: PersonId, state: Person) -> None:
    if state.trial:
        remove_trial_file(grounds.data_dir)


ERASERS: Final = (
    Eraser("data key", _delete_data_key),
    Eraser("API keys", _end_keys),
    Eraser("exports", _remove_exports),
    Eraser("trial key file", _remove_trial_file),
)
"""In this order: first what makes the rest unreadable. What else keeps something of a person in a
table, a file or an object adds its step here. Read models hold numbers only."""


class Forgetting:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(
        self,
        writer: Writer,
        pool: Pool,
        identity: Identity,
        data_dir: Path,
        erasers: tuple[Eraser, ...] = ERASERS,
    ) -> None:
        self._grounds: Final = Grounds(writer, pool, identity, data_dir)
        self._erasers: Final = erasers

    async def forget(self, person: PersonId, actor: str) -> Forgotten:
        """Forgets a person and erases what is left of them. Raises NotFound; Conflict for the last
        administrator; SiteProblem or OSError where a file cannot be removed: it is tried again
        later."""
        writer = self._grounds.writer
        keys = (await _living_keys(self._grounds.identity, person))[:KEYS_IN_UNIT_MAX]
        unit = joined([await self._person_part(person, actor), *(_key_end(k, actor) for k in keys)])
        outcome = await writer.submit(Command(writer.new_id(), unit.streams, unit.decide))
        match outcome:
            case Landed():
                _log.info("person forgotten", person=person, keys=len(keys))
            case Refused(AlreadyForgotten()):
                raise NotFound("There is no such user.")
            case Refused(LastAdministrator()):
                raise Conflict("This is the last administrator: make another one first.")
            case _:
                raise Conflict("This was changed by someone else; try again.")
        await self.finish(person)
        return Forgotten(person, len(keys))

    async def finish(self, person: PersonId) -> None:
        """Erases what is left of a forgotten person; without effect once nothing is."""
        state = await self._grounds.identity.state_of(person)
        assert state.forgotten, "nobody is erased who is not forgotten"
        for eraser in self._erasers:
            await eraser.erase(self._grounds, person, state)
            _log.debug("erased", person=person, what=eraser.what)
        async with self._grounds.pool.connection() as connection:
            await connection.execute(FINISHED, {"account": person})

    async def finish_all(self) -> int:
        """Finishes every forgetting that was cut off or came from elsewhere, as after a restore;
        returns how many. One that cannot be finished waits for the next call."""
        count, after = 0, "person:"
        while True:
            found = await self._unfinished(after)
            for stream in found:
                count += await self._finished(PersonId(int(id_of(stream))))
            if len(found) < PAGE_PERSONS:
                return count
            after = found[-1]

    async def _finished(self, person: PersonId) -> bool:
        try:
            await self.finish(person)
        except (SuanpanError, OSError) as error:
            _log.error("not erased", person=person, error=type(error).__name__)
            return False
        return True

    async def _unfinished(self, after: str) -> list[str]:
        arguments = {"after": after, "mark": FORGOTTEN_MARK, "count_max": PAGE_PERSONS}
        async with self._grounds.pool.connection() as connection:
            rows = await fetch_all(connection, FIND_UNFINISHED, arguments)
        return [stream for (stream,) in rows]

    async def _person_part(self, person: PersonId, actor: str) -> Part:
        state = await self._grounds.identity.state_of(person)
        if state.forgotten:
            raise NotFound("There is no such user.")
        own = person_stream(person)
        others = await self._other_administrators(own) if state.administrator else ()
        return Part(
            (own, name_stream(state.name_hmac), *others),
            lambda standings, at_us: decide_forget(
                standings[0], standings[1], standings[2:], person, actor
            ),
        )

    async def _other_administrators(self, own: str) -> tuple[str, ...]:
        async with self._grounds.pool.connection() as connection:
            return tuple(
                [
                    stream
                    async for stream, _, state in states_of_kind(
                        connection, IDENTITY_FOLDS, PERSON.kind
                    )
                    if state.administrator and stream != own
                ]
            )


async def _living_keys(identity: Identity, person: PersonId) -> list[KeyId]:
    return [key async for key, state in identity.list_keys(person) if not state.revoked]


def _key_end(key: KeyId, actor: str) -> Part:
    return Part((key_stream(key),), lambda standings, at_us: decide_end_key(standings[0], actor))
