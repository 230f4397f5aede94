"""The text of a code: written in groups, read as people type it, kept as a keyed hash. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from backend.kit.secrets import SiteSecret
from schemas.ids import StreamName, code_stream
from schemas.ledger import CodeKind

PREFIXES: Final = {CodeKind.REDEEM: "SP", CodeKind.GIFT: "SG"}
CODE_BITS: Final = 130
HINT_CHARS: Final = 4
_CHARS: Final = 26
"""Of five bits each (Crockford's base 32: no I, L, O or U)."""
_GROUPS: Final = (5, 5, 5, 5, 6)
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PLAIN: Final = re.compile(r"S[PG][0-9A-HJKMNP-TV-Z]{26}")
_TEXT_CHARS_MAX: Final = 200
_PURPOSE: Final = "code"
_MISREAD: Final = str.maketrans("OIL", "011")
_BETWEEN: Final = re.compile("[\\s\u2010-\u2015\u2212-]+")
"""Blanks and whatever a keyboard or a word processor makes of a dash."""


def code_text(kind: CodeKind, number: int) -> str:
    """`SP-` (redemption) or `SG-` (gift) and 26 characters of a number below 2**CODE_BITS."""
    if not 0 <= number < 2**CODE_BITS:
        raise ValueError(f"a code has {CODE_BITS} bits")
    digits = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARS)))
    parts, first = [PREFIXES[kind]], 0
    for size in _GROUPS:
        parts.append(digits[first : first + size])
        first += size
    return "-".join(parts)


def hint_of(text: str) -> str:
    """The end of a code: enough to tell it from others, far too little to guess it."""
    return text[-HINT_CHARS:]


def stream_of_code(secret: SiteSecret, text: str) -> StreamName | None:
    """The stream of a code as somebody typed it; None for what can be no code."""
    plain = _folded(text)
    if plain is None:
        return None
    return code_stream(secret.hmac(_PURPOSE, plain.encode()))


def _folded(text: str) -> str | None:
    """Without case, dashes and blanks; what is easily misread is read as what it was."""
    if len(text) > _TEXT_CHARS_MAX:
        return None
    # NFKC: full-width letters and digits are the same ones.
    plain = _BETWEEN.sub("", unicodedata.normalize("NFKC", text)).upper().translate(_MISREAD)
    return plain if _PLAIN.fullmatch(plain) else None
