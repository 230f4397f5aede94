"""Where a sound audit stood at the newest seal, kept in `<data>/audit` for the next one.

Signed by the auditor's own key: whoever changes it without that key makes it worthless, no more.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from backend.journal.seal import Seal, public_key_of
from backend.kit.clock import Randomness
from backend.kit.private_files import make_folder, write_private
from projections.sealed_files import load_or_make_key
from projections.sealed_log import Part
from schemas.errors import SiteProblem
from schemas.event import Position

FOLDER: Final = "audit"
FILE: Final = "checkpoint"
KEY_FILE: Final = "audit.key"
FORMAT: Final = 1
"""Another number is another layout, and a file of the old one is not read."""
_DOMAIN: Final = b"suanpan1checkpoint"


class UnusableCheckpoint(ValueError):
    """Why an audit cannot begin at the checkpoint: words for the operator."""


class Anchor(msgspec.Struct, frozen=True):
    """The newest seal of a chain of seals, and what is needed to read the chain on from it."""

    seal: Seal
    before: Seal | None
    """The seal before it; None where it is the first."""
    offset: int = -1
    """Of its record in Kafka; -1 where it lies in the data folder."""


class SavedStream(msgspec.Struct, frozen=True, array_like=True):
    """One stream: its head, what its events fold to, and the last command that it recorded."""

    stream: str
    version: int
    hash: bytes
    epoch: int
    xid: int
    command_id: UUID
    state: bytes


class FullAudit(msgspec.Struct, frozen=True):
    """The last audit that read every row, sound as it was."""

    at_us: int
    position: Position
    events: int


class Checkpoint(msgspec.Struct, frozen=True):
    """Everything as of `position`: the last row that the anchor's seal covers with all before it.

    `counts`: (topic, shard, rows) up to there, as the seal counts them.
    """

    software: str
    site_id: UUID
    epoch: int
    position: Position
    events: int
    anchor: Anchor
    counts: list[tuple[str, int, int]]
    streams: list[SavedStream]
    books: bytes
    full: FullAudit
    made_at_us: int

    @property
    def counted(self) -> dict[Part, int]:
        return {(topic, shard): rows for topic, shard, rows in self.counts}

    def check_usable(self, site_id: UUID, epoch: int, with_kafka: bool) -> None:
        """Whether it says anything about this log. Raises UnusableCheckpoint."""
        if self.site_id != site_id:
            raise UnusableCheckpoint("the checkpoint belongs to another site")
        if self.epoch != epoch:
            raise UnusableCheckpoint("the log was restored or recovered since the checkpoint")
        if with_kafka is not (self.anchor.offset >= 0):
            raise UnusableCheckpoint("the site is sealed in another place since the checkpoint")


class _Signed(msgspec.Struct, frozen=True):
    format: int
    body: bytes
    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    signature: bytes


class CheckpointFile:
    """`<data>/audit/checkpoint`: one, replaced whole."""

    def __init__(self, data_dir: Path, randomness: Randomness) -> None:
        self._folder: Final = data_dir / FOLDER
        self._randomness: Final = randomness

    def save(self, checkpoint: Checkpoint) -> str:
        """Durable when this returns; the file's SHA-256 in hex. Raises SiteProblem."""
        make_folder(self._folder, 0o700)
        key = load_or_make_key(self._folder, self._randomness, KEY_FILE)
        body = msgspec.msgpack.encode(checkpoint)
        signature = key.sign(_signed_bytes(FORMAT, body))
        content = msgspec.msgpack.encode(_Signed(FORMAT, body, public_key_of(key), signature))
        write_private(self._folder / FILE, content)
        return sha256(content).hexdigest()

    def load(self) -> Checkpoint:
        """Only what our own key signed. Raises UnusableCheckpoint."""
        try:
            signed = msgspec.msgpack.decode((self._folder / FILE).read_bytes(), type=_Signed)
            if signed.format != FORMAT:
                raise UnusableCheckpoint("another version of Suanpan made the checkpoint")
            self._verify(signed)
            return msgspec.msgpack.decode(signed.body, type=Checkpoint)
        except FileNotFoundError:
            raise UnusableCheckpoint("there is no checkpoint of an earlier audit") from None
        except OSError as error:
            raise UnusableCheckpoint(f"the checkpoint cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, InvalidSignature, SiteProblem) as error:
            raise UnusableCheckpoint("the checkpoint is damaged, or not this auditor's") from error

    def _verify(self, signed: _Signed) -> None:
        """Raises InvalidSignature; SiteProblem where there is no key."""
        if not (self._folder / KEY_FILE).exists():
            raise InvalidSignature
        key = load_or_make_key(self._folder, self._randomness, KEY_FILE)
        if signed.public_key != public_key_of(key):
            raise InvalidSignature
        Ed25519PublicKey.from_public_bytes(signed.public_key).verify(
            signed.signature, _signed_bytes(signed.format, signed.body)
        )


def _signed_bytes(number: int, body: bytes) -> bytes:
    return _DOMAIN + number.to_bytes(4, "big") + sha256(body).digest()
