"""Keys derived from the site's secret, sealing, password and API key hashes.

Must not print, log or return key material, but to whoever asked for a wrapped or new key.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import struct
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backend.kit.clock import Randomness
from backend.kit.private_files import make_data_dir, write_private
from backend.kit.settings import Settings
from schemas.errors import BadRequest, SiteProblem, SuanpanError, Unavailable

SECRET_CHARS_MIN = 32
NONCE_BYTES = 12
KEY_BYTES = 32
PASSWORD_CHARS_MAX = 1024
_PERIOD_MAX = 16
_DISTINCT_MIN = 8
_SEALED_V1 = b"\x01"
_TAG_BYTES = 16
_SALT = b"suanpan site secret"
_WELL_KNOWN = (
    "changeme", "changethis", "pleasechange", "replaceme", "yoursecret", "mysecret", "supersecret",
    "secretkey", "password", "passw0rd", "insecure", "notsecret", "placeholder", "correcthorse",
)  # fmt: skip
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_API_KEY_CHARS = 43
_HASHES_AT_ONCE = 2
_HASHES_WAITING_MAX = 64

_T = TypeVar("_T")


class SealBroken(SuanpanError):
    """A sealed value does not open: other key, other place (AAD), or changed bytes."""

    code = "seal_broken"


class Sealer(Protocol):
    """What seals and opens: the site itself, or one account's data key."""

    def seal(self, plaintext: bytes, aad: bytes, nonce: bytes) -> bytes: ...

    def open(self, sealed: bytes, aad: bytes) -> bytes: ...


class _AesGcm:
    """AES-256-GCM as version byte ‖ nonce ‖ ciphertext ‖ tag; the version is authenticated."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([hidden])"

    def seal(self, plaintext: bytes, aad: bytes, nonce: bytes) -> bytes:
        """Seal for `aad`. `nonce`: 12 random bytes, never used twice with this key."""
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        return _SEALED_V1 + nonce + self._cipher.encrypt(nonce, plaintext, _SEALED_V1 + aad)

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """Open what `seal` made for the same `aad`. Raises SealBroken."""
        if len(sealed) < 1 + NONCE_BYTES + _TAG_BYTES or sealed[:1] != _SEALED_V1:
            raise SealBroken("A sealed value has an unknown form.")
        nonce, body = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, body, _SEALED_V1 + aad)
        except InvalidTag as error:
            raise SealBroken(
                "A sealed value could not be opened: it was changed or moved, or SECRET is not "
                "the one it was sealed with."
            ) from error


class DataKey(_AesGcm):
    """One account's key. Forgetting the account means losing it."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes")
        super().__init__(raw)
        self._raw = raw

    @classmethod
    def generate(cls, randomness: Randomness) -> Self:
        return cls(randomness.bytes(KEY_BYTES))


class EpochKey(DataKey):
    """Wraps data keys for a time. What it wrapped cannot be opened once it is lost."""

    __slots__ = ()

    def wrap_data_key(self, key: DataKey, aad: bytes, nonce: bytes) -> bytes:
        """`key` sealed for storing outside; `aad` binds it to its account."""
        return self.seal(key._raw, aad, nonce)  # pyright: ignore[reportPrivateUsage] # noqa: SLF001

    def unwrap_data_key(self, wrapped: bytes, aad: bytes) -> DataKey:
        """Raises SealBroken."""
        return DataKey(self.open(wrapped, aad))


class SiteSecret(_AesGcm):
    """Keys derived by HKDF-SHA256 from the site's secret, one per purpose (RFC 5869)."""

    __slots__ = ("_hmac_keys", "_material", "_wrapper")

    def __init__(self, text: str) -> None:
        check_secret(text)
        self._material = text.encode()
        super().__init__(self._derive("seal"))
        self._wrapper = _AesGcm(self._derive("wrap data keys"))
        self._hmac_keys: dict[str, bytes] = {}

    def hmac(self, purpose: str, data: bytes) -> bytes:
        """HMAC-SHA256 (32 bytes) under a key of this purpose alone. Purposes are constants."""
        key = self._hmac_keys.get(purpose)
        if key is None:
            key = self._hmac_keys[purpose] = self._derive(f"hmac {purpose}")
        return hmac.digest(key, data, "sha256")

    def derive(self, purpose: str) -> bytes:
        """32 bytes for `purpose`, such as the seed of a signing key."""
        return self._derive(f"derived {purpose}")

    def wrap_data_key(self, key: DataKey, aad: bytes, nonce: bytes) -> bytes:
        """`key` sealed for storing outside; `aad` binds it to its account."""
        return self._wrapper.seal(key._raw, aad, nonce)  # pyright: ignore[reportPrivateUsage] # noqa: SLF001

    def unwrap_data_key(self, wrapped: bytes, aad: bytes) -> DataKey:
        """Raises SealBroken."""
        return DataKey(self._wrapper.open(wrapped, aad))

    def unwrap_epoch_key(self, wrapped: bytes, aad: bytes) -> EpochKey:
        """An epoch's key that `wrap_data_key` wrapped. Raises SealBroken."""
        return EpochKey(self._wrapper.open(wrapped, aad))

    def _derive(self, purpose: str) -> bytes:
        derivation = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=_SALT, info=purpose.encode())
        return derivation.derive(self._material)


def aad_of(stream: str, version: int) -> bytes:
    """What a sealed value in an event is bound to: its stream and version, unambiguously."""
    name = stream.encode()
    return struct.pack(">I", len(name)) + name + struct.pack(">Q", version)


def load_or_make_secret(settings: Settings, randomness: Randomness) -> SiteSecret:
    """SECRET if it is set, else `<data>/secret` (0600), made at the first start.

    Raises SiteProblem for a weak secret or a file that cannot be read or written.
    """
    if settings.secret is not None:
        return SiteSecret(settings.secret.strip())
    path = settings.data_dir / "secret"
    text = _read_secret(path)
    if text is None:
        make_data_dir(settings.data_dir)
        text = base64.urlsafe_b64encode(randomness.bytes(KEY_BYTES)).rstrip(b"=").decode()
        write_private(path, text.encode() + b"\n")
    return SiteSecret(text)


def _read_secret(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise SiteProblem(f"{path} is not text; put the site's secret back there.") from error
    except OSError as error:
        raise SiteProblem(
            f"{path} cannot be read ({error.strerror}). Run as the user who made the site, or "
            "set SECRET."
        ) from error


def check_secret(text: str) -> None:
    """Refuse a secret that is short or guessable. Raises SiteProblem; never repeats the secret."""
    advice = "Set SECRET to 32 or more random characters (openssl rand -base64 32)."
    if len(text) < SECRET_CHARS_MIN:
        raise SiteProblem(f"SECRET is too short: {len(text)} characters. {advice}")
    plain = "".join(char for char in text.lower() if char.isalnum())
    if (
        len(set(text)) < _DISTINCT_MIN
        or any(text[period:] == text[:-period] for period in range(1, _PERIOD_MAX + 1))
        or any(word in plain for word in _WELL_KNOWN)
        or _steps(text) * 2 > len(text)
    ):
        raise SiteProblem(f"SECRET is a well-known or guessable text. {advice}")


def _steps(text: str) -> int:
    """How many characters follow their neighbour by one: `abcdef` has five."""
    return sum(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(text))


# Memory-hard and still modest: 19 MiB, 2 passes, 1 lane (OWASP's argon2id minimum).
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_hash_threads = ThreadPoolExecutor(max_workers=_HASHES_AT_ONCE, thread_name_prefix="argon2")
_hash_places = threading.BoundedSemaphore(_HASHES_AT_ONCE + _HASHES_WAITING_MAX)


async def hash_password(password: str) -> str:
    """The argon2id hash (PHC string). Raises BadRequest, or Unavailable when too many wait."""
    prepared = _prepare_password(password)
    return await _in_hash_thread(lambda: _hasher.hash(prepared))


async def verify_password(hashed: str, password: str) -> bool:
    """Whether `password` is the one hashed; False too for a malformed hash. Raises Unavailable."""
    try:
        prepared = _prepare_password(password)
    except BadRequest:
        return False

    def check() -> bool:
        try:
            return _hasher.verify(hashed, prepared)
        except (VerificationError, InvalidHashError):
            return False

    return await _in_hash_thread(check)


def password_needs_rehash(hashed: str) -> bool:
    """Whether the hash was made with weaker parameters than today's."""
    return _hasher.check_needs_rehash(hashed)


def _prepare_password(password: str) -> bytes:
    """NFKC, so that the same password typed on another keyboard is the same (NIST 800-63B)."""
    if not 0 < len(password) <= PASSWORD_CHARS_MAX:
        raise BadRequest(f"A password has 1 to {PASSWORD_CHARS_MAX} characters.")
    try:
        return unicodedata.normalize("NFKC", password).encode()
    except UnicodeEncodeError as error:
        raise BadRequest("A password must be valid Unicode text.") from error


async def _in_hash_thread(work: Callable[[], _T]) -> _T:
    if not _hash_places.acquire(blocking=False):
        raise Unavailable("Too many sign-ins at once; try again shortly.", retry_after_s=2)
    future = _hash_threads.submit(work)
    # Freed by the thread itself: a caller that was cancelled does not shorten its work.
    future.add_done_callback(lambda _: _hash_places.release())
    return await asyncio.wrap_future(future)


def make_api_key(randomness: Randomness) -> tuple[str, str]:
    """A new key (`sk-` and 43 letters and digits, 256 bits) and the hint that may be shown."""
    number = randomness.bits(256)
    digits: list[str] = []
    for _ in range(_API_KEY_CHARS):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    text = "sk-" + "".join(digits)
    return text, f"sk-…{text[-4:]}"


def hash_api_key(text: str) -> bytes:
    """SHA-256 of a key. Enough without salt or stretching: keys are random, not chosen."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
