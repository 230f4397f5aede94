"""The fold of a `limit:` stream, what may be said of a limit, and the decision to set one. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.catalog.decide import NothingToChange
from backend.journal.commands import Accept, Decision, Refuse, Standing
from backend.journal.fold import Fold
from schemas.catalog import Limits, LimitSet
from schemas.errors import BadRequest
from schemas.ids import id_of

KEY: Final = "key"
PERSON: Final = "person"
GROUP: Final = "group"
MODEL: Final = "model"
SCOPES: Final = (KEY, PERSON, GROUP, MODEL)
"""Whom a limit binds: one key, all keys of a person, all callers of a group, of a model."""

LIMIT_MAX: Final = 10**12
NO_LIMITS: Final = Limits()


class Limited(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of one key, person, group or model now; all None: none."""

    limits: Limits = NO_LIMITS


def apply(state: Limited, event: Any, version: int, at_us: int) -> Limited:
    """The limits after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, LimitSet):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a limit")
    return Limited(event.limits)


LIMIT: Final = Fold("limit", Limited(), apply)


def decide_set_limit(standing: Standing, wanted: Limits) -> Decision:
    """All limits at once; a new version, unless the newest one says the same."""
    state: Limited = standing.state
    if state.limits == wanted:
        return Refuse(NothingToChange(standing.version))
    return Accept(((0, LimitSet(wanted)),))


def check_limits(limits: Limits) -> Limits:
    """Each limit is None or a whole number from 1. Raises BadRequest."""
    for value in msgspec.structs.astuple(limits):
        if value is not None and not 1 <= value <= LIMIT_MAX:
            raise BadRequest(f"A limit is a whole number from 1 to {LIMIT_MAX}, or none.")
    return limits


def limit_of(stream: str) -> tuple[str, str]:
    """(scope, id) of `limit:<scope>:<id>`."""
    scope, _, identity = id_of(stream).partition(":")
    return scope, identity
