"""The heads of streams that a writer has seen, bounded in bytes; a guess until an append confirms
it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from backend.journal.batch import Head
from backend.journal.chain import genesis_hash
from backend.journal.fold import Folds
from backend.kit.postgres import Connection, fetch_all

LOAD: Final = "SELECT stream, version, hash, state FROM streams WHERE stream = ANY(%(streams)s)"

ENTRY_BYTES: Final = 600
"""What an entry costs besides its encoded state (measured: about half a kilobyte)."""


async def load_heads(
    connection: Connection, folds: Folds, site_id: UUID, streams: Iterable[str]
) -> dict[str, tuple[Head, int]]:
    """Heads and encoded sizes as committed now; version 0 for a stream that does not exist."""
    wanted = list(streams)
    rows = await fetch_all(connection, LOAD, {"streams": wanted})
    found = {
        stream: (Head(version, bytes(digest), folds.of(stream).decode(state)), len(state))
        for stream, version, digest, state in rows
    }
    for stream in wanted:
        if stream not in found:
            found[stream] = (Head(0, genesis_hash(site_id, stream), folds.of(stream).empty), 0)
    return found


class HeadCache:
    """Least recently used heads go first once `bytes_max` is passed."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max: Final = bytes_max
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[Head, int]] = OrderedDict()

    def get(self, stream: str) -> Head | None:
        entry = self._entries.get(stream)
        if entry is None:
            return None
        self._entries.move_to_end(stream)
        return entry[0]

    def put(self, stream: str, head: Head, state_bytes: int) -> None:
        self.drop(stream)
        size = state_bytes * 3 + ENTRY_BYTES
        self._entries[stream] = (head, size)
        self._bytes += size
        while self._bytes > self._bytes_max and self._entries:
            _, (_, freed) = self._entries.popitem(last=False)
            self._bytes -= freed

    def drop(self, stream: str) -> None:
        entry = self._entries.pop(stream, None)
        if entry is not None:
            self._bytes -= entry[1]

    def __len__(self) -> int:
        return len(self._entries)
