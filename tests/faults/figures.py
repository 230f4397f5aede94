"""One row per fault: what was done to the site and what came of it; the table of them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.faults.catalogue import CATALOGUE


class Figures(msgspec.Struct):
    """None: it does not apply to this fault."""

    fault: str
    """F1 … F31."""
    what: str
    injected: int
    violations: int
    unavailable_s: float | None = None
    unknown: int | None = None
    hold_age_s: float | None = None
    """The longest time from a hold to its outcome."""
    p99_ms: float | None = None
    """Of calls that were answered and met the fault."""
    recovery_s: float | None = None
    """The longest time from the fault's end to the first answer to a new call."""
    note: str = ""


def scenario(fault: str, what: str, injected: int, note: str = "") -> Figures:
    """A scene that a test plays step by step, without load: it holds, or the test has failed."""
    return Figures(fault, what, injected, 0, note=note)


class Absent(msgspec.Struct):
    """A fault of which this run has no figures, and why."""

    fault: str
    what: str
    why: str


HEADS = (
    "fault", "what", "injected", "violations", "unavailable s", "unknown", "oldest hold s",
    "p99 ms", "recovery s", "note",
)  # fmt: skip


class Report(msgspec.Struct):
    """Collected over a run."""

    rows: list[Figures] = msgspec.field(default_factory=list)
    skipped: dict[str, str] = msgspec.field(default_factory=dict)
    failed: dict[str, str] = msgspec.field(default_factory=dict)
    settings: dict[str, Any] = msgspec.field(default_factory=dict)

    def sorted_rows(self) -> list[Figures]:
        return sorted(self.rows, key=lambda row: (int(row.fault.removeprefix("F")), row.what))

    def absent(self) -> list[Absent]:
        seen = {row.fault for row in self.rows}
        return [
            Absent(fault, entry.what, self._why(fault, entry.elsewhere))
            for fault, entry in CATALOGUE.items()
            if fault not in seen
        ]

    def _why(self, fault: str, elsewhere: str) -> str:
        if fault in self.failed:
            return f"FAILED: {self.failed[fault]}"
        if fault in self.skipped:
            beside = f"; {elsewhere}" if elsewhere else ""
            return f"not run: {self.skipped[fault]}{beside}"
        return elsewhere or "not part of this run"

    def lines(self) -> list[str]:
        """For the terminal."""
        rows = [HEADS[:-1], *(cells(row)[:-1] for row in self.sorted_rows())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        lines += [f"{row.fault} {row.what}: {row.note}" for row in self.sorted_rows() if row.note]
        return lines + [f"{one.fault} {one.what}: {one.why}" for one in self.absent()]

    def markdown(self) -> str:
        lines = [_line(HEADS), _line(["---"] * len(HEADS))]
        lines += [_line(cells(row)) for row in self.sorted_rows()]
        lines += ["", _line(("fault", "what", "where its proof is")), _line(["---"] * 3)]
        lines += [_line((one.fault, one.what, one.why)) for one in self.absent()]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """`path`.json and `path`.md, whatever suffix `path` has."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "settings": self.settings,
            "faults": [msgspec.to_builtins(row) for row in self.sorted_rows()],
            "absent": [msgspec.to_builtins(one) for one in self.absent()],
            "failed": self.failed,
        }
        path.with_suffix(".json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        path.with_suffix(".md").write_text(self.markdown())


def cells(row: Figures) -> tuple[str, ...]:
    return (
        row.fault, row.what, str(row.injected), str(row.violations), _number(row.unavailable_s),
        _number(row.unknown), _number(row.hold_age_s), _number(row.p99_ms, 0),
        _number(row.recovery_s, 2), row.note,
    )  # fmt: skip


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _line(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |"
