"""`GET /api/key`: what the key in use may do."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import get

from backend.http.api.door import WALLET, AnyRequest, caller_of
from schemas.money import format_points


class OwnKey(msgspec.Struct, frozen=True):
    """The caller's key as its owner set it up. Points as decimal strings, times in microseconds
    since 1970 UTC.
    """

    key: int
    person: int
    scopes: list[str]
    models: list[str]
    """Empty: every model."""
    expires_us: int | None
    quota: str | None
    reset: str
    addresses: list[str]
    concurrency: int | None
    group: str
    """Empty: the account's own."""


def own_key_routes() -> list[Any]:
    @get("/key", opt=WALLET, operation_id="showKey", sync_to_thread=False)
    def show_key(request: AnyRequest) -> OwnKey:
        """What the key in use may do."""
        entry = caller_of(request)
        return OwnKey(
            key=entry.key,
            person=entry.person,
            scopes=sorted(entry.scopes),
            models=sorted(entry.models),
            expires_us=entry.expires_us,
            quota=None if entry.quota_upt is None else format_points(entry.quota_upt),
            reset=entry.reset,
            addresses=list(entry.addresses),
            concurrency=entry.concurrency,
            group=entry.group,
        )

    return [show_key]
