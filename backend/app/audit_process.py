"""An audit in a process of its own: `python -m backend.app.audit_process`, asked on stdin.

An audit computes for minutes: in the event loop that answers calls it would be felt by all of them.
It ends when its stdin does, so that it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final, TextIO

import msgspec

from backend.app.audit_lines import Asked, Said
from backend.folds import ALL_FOLDS
from backend.kit.postgres import DatabaseError
from projections.audit.run import AuditAsked, run_audit
from schemas.errors import SuanpanError

SAY_EVERY_S: Final = 0.5
EXIT_FAILED: Final = 1


class Voice:
    """Says how far the audit is, not more often than somebody wants to know."""

    def __init__(self, out: TextIO) -> None:
        self._out: Final = out
        self._phase = ""
        self._said_s = 0.0

    def progress(self, phase: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if phase == self._phase and now_s - self._said_s < SAY_EVERY_S:
            return
        self._phase, self._said_s = phase, now_s
        self.say(Said(phase, done, total))

    def note(self, text: str) -> None:
        self.say(Said(note=text))

    def say(self, said: Said) -> None:
        self._out.write(msgspec.json.encode(said).decode() + "\n")
        self._out.flush()


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.readline(), type=Asked)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    voice = Voice(sys.stdout)
    wanted = AuditAsked(
        asked.database_url, Path(asked.data_dir), asked.bootstrap, since_seal=asked.since_seal
    )
    try:
        report = asyncio.run(run_audit(wanted, ALL_FOLDS, progress=voice.progress, note=voice.note))
    except SuanpanError as error:
        voice.say(Said(error=error.sentence))
        return EXIT_FAILED
    except (DatabaseError, OSError, TimeoutError, ValueError) as error:
        voice.say(Said(error=f"The audit could not go on: {type(error).__name__}."))
        return EXIT_FAILED
    voice.say(Said(report=msgspec.Raw(msgspec.json.encode(report))))
    return 0


def _end_with_stdin() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
