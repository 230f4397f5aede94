"""The text of an invitation: made, read and hashed. Pure; a person's state says if it counts."""

from __future__ import annotations

import base64
import re
from typing import Final

import msgspec

from backend.journal.units import Part
from backend.kit.clock import Randomness
from backend.kit.secrets import SiteSecret
from schemas.ids import PersonId

_SECRET_CHARS: Final = 26
"""Base32: 130 bits, so that nobody guesses one."""
_SECRET_BYTES: Final = 17
_TEXT: Final = re.compile(r"inv-([0-9a-z]{1,13})-[a-z2-7]{26}")
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PERSON_MAX: Final = 2**63 - 1


class Invitation(msgspec.Struct, frozen=True):
    """A valid invitation; `part` checks, in the unit of the registration, that it still is."""

    inviter: PersonId
    part: Part


def make_invitation(person: PersonId, randomness: Randomness) -> str:
    """`inv-<person in base 36>-<26 characters of base32>`."""
    drawn = base64.b32encode(randomness.bytes(_SECRET_BYTES)).decode().lower()
    return f"inv-{_base36(person)}-{drawn[:_SECRET_CHARS]}"


def inviter_named_in(code: str) -> PersonId | None:
    """Whose invitation a text claims to be; None where it is no invitation at all."""
    found = _TEXT.fullmatch(_plain(code))
    if found is None:
        return None
    person = int(found[1], 36)
    return PersonId(person) if 0 < person <= _PERSON_MAX else None


def invitation_hmac(secret: SiteSecret, code: str) -> bytes:
    """The keyed hash under which an invitation is kept: tells nothing without the secret."""
    return secret.hmac("invitation", _plain(code).encode("utf-8", "surrogatepass"))


def _plain(code: str) -> str:
    return code.strip().lower()


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
