"""How often somebody may guess a code or a password, or register. Exact over all processes.

Counts in Valkey, before the guess is looked at; where Valkey does not answer nobody may guess.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
import structlog

from backend.http.address import Address, limited_as
from backend.identity.names import fold_name
from backend.kit.clock import Randomness
from backend.kit.secrets import SiteSecret
from backend.kit.settings import AttemptSettings
from backend.kit.valkey import Script, Valkey, ValkeyErrors
from schemas.errors import RateLimited, Unavailable

Kind = Literal["code", "login", "register"]

RETRY_S: Final = 5
PURPOSE: Final = "attempts"

RESERVE: Final = Script("""
-- Per key a hash: how many (n), of which window (id). ARGV: an id for a new window; then limit and
-- length in ms per key. Answers 0, or the first full key's number and how many ms it stays full.
for i, key in ipairs(KEYS) do
  local n = tonumber(redis.call('HGET', key, 'n') or '0')
  if n >= tonumber(ARGV[i * 2]) then
    return {i, redis.call('PTTL', key)}
  end
end
for i, key in ipairs(KEYS) do
  if redis.call('HINCRBY', key, 'n', 1) == 1 then
    redis.call('HSET', key, 'id', ARGV[1])
    redis.call('PEXPIRE', key, ARGV[i * 2 + 1])
  end
end
local ids = {0}
for i, key in ipairs(KEYS) do
  ids[i + 1] = redis.call('HGET', key, 'id')
end
return ids
""")
GIVE_BACK: Final = Script("""
-- ARGV: per key the id of the window that was counted in; another window is left alone.
for i, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'id') == ARGV[i] and redis.call('HINCRBY', key, 'n', -1) <= 0 then
    redis.call('DEL', key)
  end
end
return {}
""")

_SENTENCES: Final[dict[Kind, str]] = {
    "code": "Too many unknown codes",
    "login": "Too many failed sign-ins",
    "register": "Too many new accounts from this address",
}
_DOWN: Final[dict[Kind, str]] = {
    "code": "Codes cannot be redeemed at the moment; try again shortly.",
    "login": "Nobody can sign in at the moment; try again shortly.",
    "register": "Nobody can register at the moment; try again shortly.",
}

_log = structlog.get_logger("http.attempts")


class Bound(msgspec.Struct, frozen=True):
    """So many attempts of one subject in one window, which begins with the first of them."""

    name: str
    limit: int
    window_ms: int


class Attempt(msgspec.Struct, frozen=True):
    """An attempt that was counted. It stays counted unless it is forgiven."""

    kind: Kind
    names: tuple[str, ...]
    windows: tuple[int, ...]


class AttemptLimits:
    """One per process."""

    def __init__(
        self,
        valkey: Valkey,
        secret: SiteSecret,
        randomness: Randomness,
        settings: AttemptSettings,
    ) -> None:
        self._valkey: Final = valkey
        self._secret: Final = secret
        self._randomness: Final = randomness
        self._settings: Final = settings

    async def check(self, kind: Kind, *, account: str = "", address: Address | None) -> Attempt:
        """Counts an attempt before it is made. `account`: who guesses, or the name that is tried.

        `forgive` it where the guess was good, or where it was no guess. Raises RateLimited, and
        has counted nothing then; Unavailable where Valkey does not answer.
        """
        bounds = self._bounds(kind, account, limited_as(address))
        names = tuple(bound.name for bound in bounds)
        arguments: list[str | int] = [self._randomness.bits(62)]
        for bound in bounds:
            arguments += (bound.limit, bound.window_ms)
        try:
            full, *rest = await self._valkey.run(RESERVE, names, arguments)
        except ValkeyErrors as error:
            _log.warning("attempt refused", kind=kind, error=type(error).__name__)
            raise Unavailable(_DOWN[kind], retry_after_s=RETRY_S) from error
        if full:
            retry_s = max(1, -(-rest[0] // 1000))
            said = f"{_SENTENCES[kind]}; try again in {retry_s} s."
            raise RateLimited(said, retry_after_s=retry_s, limit=bounds[full - 1].limit)
        return Attempt(kind, names, tuple(rest))

    async def forgive(self, attempt: Attempt) -> None:
        """Takes an attempt back. It stays counted where Valkey does not answer now."""
        try:
            await self._valkey.run(GIVE_BACK, attempt.names, attempt.windows)
        except ValkeyErrors as error:
            _log.warning("attempt stays counted", kind=attempt.kind, error=type(error).__name__)

    def _bounds(self, kind: Kind, account: str, address: str) -> tuple[Bound, ...]:
        s = self._settings
        match kind:
            case "code":
                window_ms = int(s.code_window_s * 1000)
                by_account = self._bound(kind, "account", account, s.code_guesses, window_ms)
                by_address = self._bound(kind, "address", address, s.code_guesses, window_ms)
                return by_account, by_address
            case "login":
                window_ms, both = int(s.login_window_s * 1000), f"{address} {fold_name(account)}"
                return (
                    self._bound(kind, "name and address", both, s.login_failures, window_ms),
                    self._bound(kind, "address", address, s.login_address_failures, window_ms),
                )
            case "register":
                window_ms = int(s.registration_window_s * 1000)
                return (self._bound(kind, "address", address, s.registrations, window_ms),)

    def _bound(self, kind: Kind, of: str, subject: str, limit: int, window_ms: int) -> Bound:
        """Names and addresses are not written down: their keyed hash is."""
        text = f"{kind}\0{of}\0{subject}".encode("utf-8", "surrogatepass")
        digest = self._secret.hmac(PURPOSE, text)[:16].hex()
        return Bound(f"attempts:{kind}:{digest}", limit, window_ms)
