"""The fold of a `key:` stream: whose API key it is and what it may do. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backend.identity.person import ImpossibleHistory
from backend.journal.fold import Fold
from schemas.identity import KeyCreated, KeyRevoked, Reset, Scope

SCOPES_AT_FIRST: Final = (Scope.RELAY, Scope.WALLET)
"""What a key opens unless its owner says otherwise; keys from before scopes have the same."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    person: int = 0
    hash_sealed: bytes = b""
    """Sealed at version 1."""
    name: str = ""
    hint: str = ""
    models: tuple[str, ...] = ()
    """Empty: every model."""
    expires_us: int | None = None
    scopes: tuple[Scope, ...] = SCOPES_AT_FIRST
    quota_upt: int | None = None
    """What it may spend in a period; None: all that the account has."""
    reset: Reset = Reset.NEVER
    addresses: tuple[str, ...] = ()
    """Networks (CIDR) it may be used from; empty: everywhere."""
    concurrency: int | None = None
    """Requests under way at once; None: no limit."""
    group: str = ""
    """Empty: the account's own."""
    revoked: bool = False


def apply(state: Key, event: Any, version: int, at_us: int) -> Key:
    """The key after one more event. Raises ImpossibleHistory."""
    match event:
        case KeyCreated():
            if version != 1:
                raise ImpossibleHistory("a key is created once, first")
            return _created(event)
        case KeyRevoked():
            if state.revoked:
                raise ImpossibleHistory("a key is revoked once")
            return msgspec.structs.replace(state, revoked=True)
        case _:
            raise ImpossibleHistory(f"{type(event).__name__} is no event of a key")


def _created(event: KeyCreated) -> Key:
    # Defaults are left out of a stored state by identity: one history must give the same bytes.
    at_first = event.scopes == SCOPES_AT_FIRST
    return Key(
        person=event.person,
        hash_sealed=event.hash_sealed,
        name=event.name,
        hint=event.hint,
        models=event.models,
        expires_us=event.expires_us,
        scopes=SCOPES_AT_FIRST if at_first else event.scopes,
        quota_upt=event.quota_upt,
        reset=event.reset,
        addresses=event.addresses,
        concurrency=event.concurrency,
        group=event.group,
    )


KEY: Final = Fold("key", Key(), apply)
