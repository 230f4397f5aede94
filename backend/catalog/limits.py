"""Limits' door: who may ask how often. Spending limits are elsewhere: they are decision state."""

from __future__ import annotations

from typing import Final

import msgspec

from backend.catalog.checks import check_group_name, check_model
from backend.catalog.decide import NothingToChange
from backend.catalog.limit import (
    GROUP,
    LIMIT,
    MODEL,
    NO_LIMITS,
    SCOPES,
    check_limits,
    decide_set_limit,
    limit_of,
)
from backend.journal.commands import AlreadyDone, Command, Landed, Refused
from backend.journal.fold import Folds
from backend.journal.reader import find_command
from backend.journal.units import Part
from backend.journal.view import states_of_kind
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from schemas.catalog import Limits
from schemas.errors import BadRequest, Conflict
from schemas.ids import limit_stream

_FOLDS: Final = Folds([LIMIT])


class LimitEntry(msgspec.Struct, frozen=True):
    """The limits of one key, person, group or model as the log has them now."""

    scope: str
    id: str
    limits: Limits
    version: int


class LimitBook:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(self, writer: Writer, pool: Pool) -> None:
        self._writer: Final = writer
        self._pool: Final = pool

    def limit_part(self, scope: str, identity: str, limits: Limits) -> Part:
        """New limits, as part of a unit. Raises BadRequest."""
        _check_scope(scope, identity)
        check_limits(limits)
        return Part(
            (limit_stream(scope, identity),),
            lambda standings, at_us: decide_set_limit(standings[0], limits),
        )

    async def set_limit(self, scope: str, identity: str, limits: Limits) -> int:
        """Sets all limits of one key, person, group or model; what is None has no limit then.

        Returns the version that says so, new or old. Raises BadRequest.
        """
        part = self.limit_part(scope, identity, limits)
        command = Command(self._writer.new_id(), part.streams, part.decide)
        match await self._writer.submit(command):
            case Landed():
                # Commands that land together share what the outcome says: the log is exact.
                async with self._pool.connection() as connection:
                    found = await find_command(connection, command.command_id)
                assert found is not None, "it landed a moment ago"
                return found[1][-1].version
            case Refused(NothingToChange(version)):
                return version
            case Refused() | AlreadyDone():
                raise Conflict("This limit was changed by someone else; try again.")

    async def list_limits(self) -> list[LimitEntry]:
        """Every limit that is set, by scope and id."""
        async with self._pool.connection() as connection:
            return [
                LimitEntry(*limit_of(stream), state.limits, version)
                async for stream, version, state in states_of_kind(connection, _FOLDS, LIMIT.kind)
                if state.limits != NO_LIMITS
            ]


def _check_scope(scope: str, identity: str) -> None:
    if scope not in SCOPES:
        raise BadRequest(f"A limit binds one of: {', '.join(SCOPES)}.")
    if scope == MODEL:
        check_model(identity)
    elif scope == GROUP:
        check_group_name(identity)
    elif not (identity.isascii() and identity.isdigit()):
        raise BadRequest("A key or a person is named by number here.")
