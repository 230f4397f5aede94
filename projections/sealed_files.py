"""Seals on disk: `<data>/seals/<number>.json`, the key that signs them, the newest heads.

Must not judge what a seal says of the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backend.journal.seal import BrokenSeal, HeadTree, Seal, decode_seal, encode_seal
from backend.kit.clock import Randomness
from backend.kit.private_files import (
    make_data_dir,
    make_folder,
    sync_folder,
    unwritable,
    write_private,
)
from schemas.errors import SiteProblem

FOLDER: Final = "seals"
KEY_FILE: Final = "seal.key"
HEADS_FILE: Final = "heads.json"
SEED_BYTES: Final = 32

Heads = dict[str, tuple[int, bytes]]
"""Stream → (version, hash)."""


class SavedHeads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The heads that one seal covers; worth something only if their root is the seal's."""

    number: int
    heads: list[tuple[str, int, bytes]]


def load_or_make_key(
    data_dir: Path, randomness: Randomness, name: str = KEY_FILE
) -> Ed25519PrivateKey:
    """`<data>/seal.key` (0600, hex), made at the first start. Raises SiteProblem."""
    path = data_dir / name
    try:
        seed = bytes.fromhex(path.read_text("ascii").strip())
    except FileNotFoundError:
        seed = randomness.bytes(SEED_BYTES)
        make_data_dir(data_dir)
        write_private(path, seed.hex().encode() + b"\n")
    except (OSError, ValueError) as error:
        raise SiteProblem(
            f"{path} cannot be read; put the site's sealing key back there."
        ) from error
    if len(seed) != SEED_BYTES:
        raise SiteProblem(f"{path} is not a sealing key; put the site's own back there.")
    return Ed25519PrivateKey.from_private_bytes(seed)


class SealFolder:
    """The seals of one site, in order of their numbers."""

    def __init__(self, data_dir: Path) -> None:
        self._folder: Final = data_dir / FOLDER

    def numbers(self) -> list[int]:
        """Of the seals that are there, sorted."""
        if not self._folder.is_dir():
            return []
        names = (path.stem for path in self._folder.glob("*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def read(self, number: int) -> Seal:
        """Raises BrokenSeal."""
        try:
            seal = decode_seal(self._path(number).read_bytes())
        except OSError as error:
            raise BrokenSeal(f"seal {number} cannot be read: {error.strerror}") from error
        if seal.number != number:
            raise BrokenSeal(f"the file of seal {number} holds seal {seal.number}")
        return seal

    def seals(self, after: int = 0) -> Iterator[Seal]:
        """Those behind a number, in order. Raises BrokenSeal."""
        return (self.read(number) for number in self.numbers() if number > after)

    def has(self, number: int) -> bool:
        """Whether a seal of this number is there, whatever it says."""
        return self._path(number).exists()

    def newest(self) -> Seal | None:
        """The one with the highest number; None where there is none. Raises BrokenSeal."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def write(self, seal: Seal) -> None:
        """Durable when this returns; never replaces one. Raises SiteProblem."""
        path = self._path(seal.number)
        make_folder(self._folder, 0o700)
        fresh = path.with_suffix(f".{os.getpid()}")
        write_private(fresh, encode_seal(seal))
        try:
            _rename_exclusively(fresh, path)
            sync_folder(self._folder)
        except FileExistsError as error:
            raise SiteProblem(
                f"{path} is there already: another process seals this site."
            ) from error
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            fresh.unlink(missing_ok=True)

    def save_heads(self, seal: Seal, tree: HeadTree) -> None:
        """Keeps what the seal covers, so that reading can go on from there. Raises SiteProblem."""
        heads = [(stream, *head) for stream, head in sorted(tree.heads().items())]
        write_private(
            self._folder / HEADS_FILE, msgspec.json.encode(SavedHeads(seal.number, heads))
        )

    def saved_heads(self) -> tuple[int, Heads] | None:
        """(number of their seal, heads); None where there are none that can be read."""
        try:
            saved = msgspec.json.decode((self._folder / HEADS_FILE).read_bytes(), type=SavedHeads)
        except (OSError, msgspec.DecodeError):
            return None
        return saved.number, {stream: (version, digest) for stream, version, digest in saved.heads}

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}.json"


def tree_of(heads: Heads) -> HeadTree:
    tree = HeadTree()
    for stream, (version, digest) in heads.items():
        tree.put(stream, version, digest)
    return tree


def _rename_exclusively(fresh: Path, path: Path) -> None:
    """Of two processes one gets the name: a link fails where it is taken. Raises OSError."""
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links: nearly as good.
        if path.exists():
            raise FileExistsError from None
        fresh.replace(path)
