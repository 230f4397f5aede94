"""The fold of a `key:` stream: whose API key it is and what it may do. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.identity.person import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.identity import KeyCreated, KeyRevoked


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    person: int = 0
    hash_sealed: bytes = b""
    """Sealed at version 1."""
    name: str = ""
    hint: str = ""
    models: tuple[str, ...] = ()
    """Empty: every model."""
    expires_us: int | None = None
    revoked: bool = False


def apply(state: Key, event: Any, version: int, at_us: int) -> Key:
    """The key after one more event. Raises ImpossibleHistory."""
    match event:
        case KeyCreated():
            if version != 1:
                raise ImpossibleHistory("a key is created once, first")
            return Key(
                event.person,
                event.hash_sealed,
                event.name,
                event.hint,
                event.models,
                event.expires_us,
            )
        case KeyRevoked():
            if state.revoked:
                raise ImpossibleHistory("a key is revoked once")
            return msgspec.structs.replace(state, revoked=True)
        case _:
            raise ImpossibleHistory(f"{type(event).__name__} is no event of a key")


KEY: Final = Fold("key", Key(), apply)
