"""Starts a role whose wall clock another process may set, stop and move back; time that passes
(monotonic) is left alone. It takes the place of the product's clock port, in that process only.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

VARIABLE = "SUANPAN_FAULT_CLOCK"
_LAYOUT = struct.Struct("qq")
"""Microseconds added, and the microsecond at which the clock stands still (0: it runs)."""


class JumpingClock:
    """The file that both processes see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run()

    def run(self, offset_us: int = 0) -> None:
        self._write(offset_us, 0)

    def freeze(self) -> None:
        self._write(0, time.time_ns() // 1000)

    def _write(self, offset_us: int, frozen_us: int) -> None:
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(_LAYOUT.pack(offset_us, frozen_us))


def main() -> None:
    from backend.cli import main as command_line
    from backend.kit.clock import SystemClock

    with Path(os.environ[VARIABLE]).open("rb") as file:
        shared = mmap.mmap(file.fileno(), _LAYOUT.size, prot=mmap.PROT_READ)

    def now_us(self: SystemClock) -> int:
        del self
        offset_us, frozen_us = _LAYOUT.unpack_from(shared)
        return frozen_us or time.time_ns() // 1000 + offset_us

    SystemClock.now_us = now_us
    command_line()


if __name__ == "__main__":
    main()
