"""What a person may be called, and the keyed stream under which a name is taken."""

from __future__ import annotations

import unicodedata
from typing import Final

from backend.kit.secrets import SiteSecret
from schemas.errors import BadRequest
from schemas.ids import StreamName

NAME_CHARS_MAX: Final = 64
LABEL_CHARS_MAX: Final = 64
PASSWORD_CHARS_MIN: Final = 8

_SEPARATORS: Final = ("Zl", "Zp")


def check_name(name: str) -> str:
    """The name as it is kept. Raises BadRequest."""
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise BadRequest(f"A name has 1 to {NAME_CHARS_MAX} characters.")
    if name != name.strip():
        raise BadRequest("A name does not begin or end with a blank.")
    if _has_hidden(name):
        raise BadRequest("A name has no control or invisible characters.")
    return name


def check_label(label: str) -> str:
    """What an owner calls a key. Raises BadRequest."""
    if len(label) > LABEL_CHARS_MAX or _has_hidden(label):
        raise BadRequest(
            f"A key's name has at most {LABEL_CHARS_MAX} characters, all of them visible."
        )
    return label


def check_new_password(password: str) -> str:
    """Raises BadRequest for a password that is too short; its upper bound is the hash's."""
    if len(password) < PASSWORD_CHARS_MIN:
        raise BadRequest(f"A password has at least {PASSWORD_CHARS_MIN} characters.")
    return password


def fold_name(name: str) -> str:
    """Names that look the same to a person are the same: NFKC and case folding (UAX #15, #21)."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded)


def name_hmac(secret: SiteSecret, name: str) -> bytes:
    """The keyed hash of a folded name: finds it, and tells nothing without the site's secret."""
    return secret.hmac("name", fold_name(name).encode("utf-8", "surrogatepass"))


def name_stream(hmac: bytes) -> StreamName:
    return StreamName(f"name:{hmac.hex()}")


def _has_hidden(text: str) -> bool:
    # Format characters turn text around or hide in it: two names that look the same.
    categories = {unicodedata.category(char) for char in text}
    return any(category[0] == "C" or category in _SEPARATORS for category in categories)
