"""Who calls: the API key of a request, from `Authorization`. Deny by default."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backend.identity.key_view import KeyEntry, KeyView
from backend.kit.clock import Clock
from schemas.errors import InvalidApiKey, SuanpanError, Unavailable

_MISSING: Final = (
    "You didn't provide an API key. Send it as a header: `Authorization: Bearer YOUR_KEY`."
)
_WRONG: Final = "Incorrect API key provided: it is unknown, expired or revoked."


class Callers:
    """Finds the entry of a caller's key in memory."""

    def __init__(self, keys: KeyView, clock: Clock) -> None:
        self._keys: Final = keys
        self._clock: Final = clock
        self.loaded = False

    def of(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyEntry:
        """Raises InvalidApiKey; Unavailable while the keys have not been loaded once."""
        if not self.loaded:
            raise Unavailable("The site is starting.", retry_after_s=1)
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, text = given.partition(b" ")
        if scheme.lower() != b"bearer" or not text.strip():
            raise _invalid(_MISSING)
        try:
            entry = self._keys.find(text.strip().decode("ascii"))
        except UnicodeDecodeError:
            entry = None
        if entry is None or not entry.usable(self._clock.now_us()):
            raise _invalid(_WRONG)
        return entry


def _invalid(sentence: str) -> SuanpanError:
    return InvalidApiKey(sentence)
