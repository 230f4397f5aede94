"""Settlements that Postgres could not take: fsynced files, replayed until they have landed.

A file is removed only after its settlement is known to be in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path
from tempfile import mkstemp
from typing import Final

import msgspec
import structlog

from backend.kit.postgres import DatabaseError
from backend.kit.private_files import sync_folder
from backend.ledger.decide import SettleAsked
from backend.ledger.points import Points
from schemas.errors import Unavailable

_log = structlog.get_logger("ledger.spool")


class Spooled(msgspec.Struct, frozen=True):
    """One settlement that is owed."""

    account: str
    asked: SettleAsked


class Spool:
    """A folder of settlements, one file per request: written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        self._replaying: Final = asyncio.Lock()
        self._failures: Final[Counter[str]] = Counter()
        """How often each file could not be settled: those that could not come last."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopt_drafts()

    def waiting(self) -> int:
        return sum(1 for _ in self._folder.glob("*.json"))

    async def put(self, account: str, asked: SettleAsked) -> None:
        """Returns once the settlement is on disk. Raises OSError where it cannot be written."""
        data = msgspec.json.encode(Spooled(account, asked))
        await asyncio.to_thread(self._write, f"{asked.request_id}.json", data)
        _log.warning("settlement spooled", request_id=asked.request_id)

    async def replay(self, points: Points) -> int:
        """Settles what waits; returns how many landed. Stops while Postgres does not answer."""
        landed = 0
        async with self._replaying:
            for path in self._in_turn():
                spooled = self._read(path)
                if spooled is None:
                    continue
                self._failures[path.name] += 1
                try:
                    await points.settle(spooled.account, spooled.asked)
                except (Unavailable, DatabaseError):
                    break
                except ValueError:
                    # I3, I4: its account's history refuses it. The others must not wait for that.
                    _log.error("spooled settlement refused", file=path.name, exc_info=True)
                    continue
                path.unlink(missing_ok=True)
                del self._failures[path.name]
                landed += 1
        return landed

    def _in_turn(self) -> list[Path]:
        files = self._folder.glob("*.json")
        return sorted(files, key=lambda path: (self._failures[path.name], path.name))

    def _read(self, path: Path) -> Spooled | None:
        """None where another process of this data folder was faster, or the bytes are torn."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=Spooled)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            _log.error("spooled settlement is damaged", file=path.name)
            path.rename(path.with_suffix(".damaged"))
            return None

    def _write(self, name: str, data: bytes) -> None:
        descriptor, draft = mkstemp(prefix=f".{name}.", dir=self._folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        self._publish(Path(draft), self._folder / name)

    def _publish(self, draft: Path, target: Path) -> None:
        # Nobody removes a whole draft but by naming it: if it is gone, another process did so.
        with contextlib.suppress(FileNotFoundError):
            draft.rename(target)
        sync_folder(self._folder)

    def _adopt_drafts(self) -> None:
        """What a process wrote whole but was killed before it could name is owed all the same."""
        for draft in self._folder.glob(".*.json.*"):
            try:
                spooled = msgspec.json.decode(draft.read_bytes(), type=Spooled)
            except FileNotFoundError:
                continue
            except msgspec.DecodeError:
                continue  # torn, or still being written: its client was told nothing yet
            self._publish(draft, self._folder / f"{spooled.asked.request_id}.json")
