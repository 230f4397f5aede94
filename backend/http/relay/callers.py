"""Who calls: the API key of a request, from `Authorization`. Deny by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from backend.identity.key_view import KeyEntry, KeyView
from backend.kit.clock import Clock
from schemas.errors import InvalidApiKey

_MISSING: Final = (
    "You didn't provide an API key. Send it as a header: `Authorization: Bearer YOUR_KEY`."
)
_WRONG: Final = "Incorrect API key provided: it is unknown, expired or revoked."


CatchUp = Callable[[], Awaitable[None]]
"""Reads what was committed before the call: for what is not known here yet."""


class Callers:
    """Finds the entry of a caller's key in memory; asks the log once before it refuses a new
    one.
    """

    def __init__(self, keys: KeyView, clock: Clock, catch_up: CatchUp) -> None:
        self._keys: Final = keys
        self._clock: Final = clock
        self._catch_up: Final = catch_up

    async def of(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyEntry:
        """Raises InvalidApiKey."""
        text = _key_text(headers)
        entry = self._keys.find(text)
        if entry is None:
            await self._catch_up()
            entry = self._keys.find(text)
        if entry is None or not entry.usable(self._clock.now_us()):
            raise InvalidApiKey(_WRONG)
        return entry


def _key_text(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, text = given.partition(b" ")
    if scheme.lower() != b"bearer" or not text.strip():
        raise InvalidApiKey(_MISSING)
    try:
        return text.strip().decode("ascii")
    except UnicodeDecodeError:
        raise InvalidApiKey(_WRONG) from None
