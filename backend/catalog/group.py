"""The fold of a `group:` stream: what its requests share, as defined last. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.catalog.channel import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.catalog import GroupDefined
from schemas.plans import Group


class DefinedGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """None: never defined."""

    group: Group | None = None


def apply(state: DefinedGroup, event: Any, version: int, at_us: int) -> DefinedGroup:
    """The group after one more event. Raises ImpossibleHistory."""
    if not isinstance(event, GroupDefined):
        raise ImpossibleHistory(f"{type(event).__name__} is no event of a group")
    return DefinedGroup(event.group)


GROUP: Final = Fold("group", DefinedGroup(), apply)
