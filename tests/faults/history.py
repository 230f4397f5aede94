"""Every call and its return, every fault and its end, in order and on disk; and what follows from
them for the table.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec

from tests.faults.load import Call, Ending, Returned

SILENCE_S = 0.5
"""Callers are at work all the time: a longer stretch without any answer is time out of service."""


class Window(msgspec.Struct):
    """One fault. Seconds of the event loop's clock."""

    injected_s: float
    healed_s: float = 0.0
    recovered_s: float = 0.0


class History:
    """Of one fault under one load. Lines of JSON: `t`, `event`, and what belongs to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.windows: list[Window] = []
        self.calls: list[Call] = []
        self._file = path.open("w", encoding="utf-8")
        self._began_s = asyncio.get_running_loop().time()
        self._numbers: dict[int, int] = {}

    def close(self) -> None:
        self._file.close()

    def tell(self, what: str, call: Call) -> None:
        """For `Load.tell`."""
        if what == "invoke":
            self._numbers[id(call)] = len(self.calls)
            self.calls.append(call)
            said = {"account": call.account.stream, "model": call.model, "streamed": call.streamed}
        else:
            said = {
                "as": call.returned.value,
                "status": call.status,
                "code": call.code or call.trouble,
                "request": call.request_id,
                "points": call.points,
            }
        self._write(what, call=self._numbers[id(call)], **said)

    def injected(self, what: str) -> Window:
        window = Window(asyncio.get_running_loop().time())
        self.windows.append(window)
        self._write("inject", what=what)
        return window

    def healed(self, window: Window) -> None:
        window.healed_s = asyncio.get_running_loop().time()
        self._write("heal")

    def recovered(self, window: Window) -> None:
        window.recovered_s = asyncio.get_running_loop().time()
        self._write("recovered")

    def _write(self, event: str, **said: Any) -> None:
        at_s = asyncio.get_running_loop().time() - self._began_s
        self._file.write(json.dumps({"t": round(at_s, 4), "event": event, **said}) + "\n")

    @property
    def unknown(self) -> int:
        return sum(call.returned is Returned.UNKNOWN for call in self.calls)

    def unavailable_s(self) -> float:
        """Stretches without an answer, of those that faults may have caused."""
        answers = sorted(c.ended_s for c in self.calls if c.ending is Ending.ANSWERED)
        silent = 0.0
        for before, after in pairwise(answers):
            hurt = any(w.injected_s < after and w.recovered_s >= before for w in self.windows)
            if hurt and after - before > SILENCE_S:
                silent += after - before
        return silent

    def recovery_s(self) -> float:
        """The longest time from the end of a fault to the first answer to a new call."""
        return max((w.recovered_s - w.healed_s for w in self.windows), default=0.0)

    def during(self) -> list[Call]:
        """Answered calls that met a fault."""
        return [call for call in self.calls if call.ending is Ending.ANSWERED and self._met(call)]

    def _met(self, call: Call) -> bool:
        return any(
            call.began_s < window.recovered_s and call.ended_s > window.injected_s
            for window in self.windows
        )


def p99_ms(calls: Sequence[Call]) -> float | None:
    """None where nothing was answered."""
    took = [1000 * (call.ended_s - call.began_s) for call in calls]
    if len(took) < 2:
        return took[0] if took else None
    return quantiles(took, n=100, method="inclusive")[98]
