"""Who calls and for what: the API key of a request, from `Authorization`. Deny by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from litestar.types import Scope as AsgiScope

from backend.http.address import ClientAddresses, address_allowed
from backend.identity.key_view import KeyEntry, KeyView
from backend.identity.person_view import PersonView
from backend.kit.clock import Clock
from schemas.errors import AddressNotAllowed, InvalidApiKey, MissingScope
from schemas.identity import Scope

_MISSING: Final = (
    "You didn't provide an API key. Send it as a header: `Authorization: Bearer YOUR_KEY`."
)
_WRONG: Final = "Incorrect API key provided: it is unknown, expired or revoked."
_HOW_TO_GET: Final = (
    "make a key with it by `suanpan key create --scopes`, or ask the site's operator"
)

CatchUp = Callable[[], Awaitable[None]]
"""Reads what was committed before the call: for what is not known here yet."""


class Callers:
    """Finds the entry of a caller's key in memory; asks the log once before it refuses a new
    one.
    """

    def __init__(
        self,
        keys: KeyView,
        people: PersonView,
        clock: Clock,
        catch_up: CatchUp,
        addresses: ClientAddresses,
    ) -> None:
        self._keys: Final = keys
        self._people: Final = people
        self._clock: Final = clock
        self._catch_up: Final = catch_up
        self._addresses: Final = addresses

    async def of(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        scope: Scope = Scope.RELAY,
        *others: Scope,
        client: AsgiScope | None = None,
    ) -> KeyEntry:
        """The caller's key, which has one of these scopes and may be used from where `client` is.

        Without `client` a key that is bound to addresses is refused. Raises InvalidApiKey,
        MissingScope, AddressNotAllowed.
        """
        text = _key_text(headers)
        entry = self._keys.find(text)
        if entry is None:
            await self._catch_up()
            entry = self._keys.find(text)
        if entry is None or not entry.usable(self._clock.now_us()):
            raise InvalidApiKey(_WRONG)
        if not any(self._opens(entry, one) for one in (scope, *others)):
            raise _missing(scope, *others)
        if entry.addresses:
            address = None if client is None else self._addresses.of(client)
            if not address_allowed(entry.addresses, address):
                raise AddressNotAllowed("This API key may not be used from your address.")
        return entry

    def _opens(self, entry: KeyEntry, scope: Scope) -> bool:
        if scope is Scope.ADMIN and not self._people.is_administrator(entry.person):
            return False
        return scope in entry.scopes


def _missing(*scopes: Scope) -> MissingScope:
    names = " or ".join(f"`{scope}`" for scope in scopes)
    whose = " of an administrator" if Scope.ADMIN in scopes else ""
    return MissingScope(f"This needs a key{whose} with the scope {names}: {_HOW_TO_GET}.")


def _key_text(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, text = given.partition(b" ")
    if scheme.lower() != b"bearer" or not text.strip():
        raise InvalidApiKey(_MISSING)
    try:
        return text.strip().decode("ascii")
    except UnicodeDecodeError:
        raise InvalidApiKey(_WRONG) from None
