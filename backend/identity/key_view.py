"""API keys in memory: from the hash of what a caller sent to whose key it is. No I/O per call."""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec
import structlog

from backend.identity.key import SCOPES_AT_FIRST, Key
from backend.kit.secrets import SealBroken, SiteSecret, aad_of, hash_api_key
from schemas.identity import Reset, Scope
from schemas.ids import KeyId, PersonId, StreamName, account_stream, id_of
from schemas.relay import KeyTerms

_log = structlog.get_logger("identity.keys")


class KeyEntry(msgspec.Struct, frozen=True):
    """What admission needs to know of a key."""

    key: KeyId
    person: PersonId
    account: StreamName
    models: frozenset[str]
    """Empty: every model."""
    expires_us: int | None
    revoked: bool
    scopes: frozenset[Scope] = frozenset(SCOPES_AT_FIRST)
    quota_upt: int | None = None
    """What it may spend in a period of `reset`; None: all that the account has."""
    reset: Reset = Reset.NEVER
    addresses: tuple[str, ...] = ()
    """Networks (canonical CIDR) it may be used from; empty: everywhere."""
    concurrency: int | None = None
    """Requests under way at once; None: no limit."""
    group: str = ""
    """Bound to a group; empty: the account's own."""

    @property
    def terms(self) -> KeyTerms:
        """What admission decides by."""
        return KeyTerms(self.key, self.group, self.quota_upt, self.reset, self.concurrency)

    def usable(self, now_us: int) -> bool:
        """Neither revoked nor expired."""
        return not self.revoked and (self.expires_us is None or now_us < self.expires_us)

    def allows(self, model: str) -> bool:
        return not self.models or model in self.models


class KeyView:
    """Listener of a `StateView` for `key:` streams."""

    kinds: ClassVar[tuple[str, ...]] = ("key",)

    def __init__(self, secret: SiteSecret) -> None:
        self._secret: Final = secret
        self._by_hash: dict[bytes, KeyEntry] = {}
        self._hash_of: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, key_text: str) -> KeyEntry | None:
        """The entry of a key as a caller sent it, revoked and expired ones too; None: no key."""
        return self._by_hash.get(hash_api_key(key_text))

    def put(self, stream: str, version: int, state: Key) -> None:
        digest = self._hash_of.get(stream)
        if digest is None:
            digest = self._opened(stream, state)
            if digest is None:
                return
            self._hash_of[stream] = digest
        person = PersonId(state.person)
        self._by_hash[digest] = KeyEntry(
            key=KeyId(int(id_of(stream))),
            person=person,
            account=account_stream(person),
            models=frozenset(state.models),
            expires_us=state.expires_us,
            revoked=state.revoked,
            scopes=frozenset(state.scopes),
            quota_upt=state.quota_upt,
            reset=state.reset,
            addresses=state.addresses,
            concurrency=state.concurrency,
            group=state.group,
        )

    def drop(self, stream: str) -> None:
        digest = self._hash_of.pop(stream, None)
        if digest is not None:
            del self._by_hash[digest]

    def _opened(self, stream: str, state: Key) -> bytes | None:
        try:
            return self._secret.open(state.hash_sealed, aad_of(stream, 1))
        except SealBroken as error:
            _log.error("key unusable", stream=stream, reason=error.code)
            return None
