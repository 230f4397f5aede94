"""Groups from the events alone: a multiplier that was applied is the one that was defined. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from projections.audit.report import PROVENANCE, Findings
from schemas.event import Recorded
from schemas.plans import Group
from schemas.prices import PPM, Terms

_Version = tuple[str, int]
"""(group, version of its stream)."""


class GroupsSaved(msgspec.Struct, array_like=True):
    """All that the books know, to go on with."""

    defined: list[tuple[str, int, int]]
    applied: list[tuple[str, int, int, str, int]]


class GroupBooks:
    """`finish` when all have passed: a group may come after its use, on another topic."""

    def __init__(self, findings: Findings) -> None:
        self._findings: Final = findings
        self._defined: Final[dict[_Version, int]] = {}
        self._applied: Final[dict[tuple[str, int, int], tuple[str, int]]] = {}

    def defined(self, group: str, version: int, definition: Group) -> None:
        self._defined[group, version] = definition.multiplier_ppm

    def applied(self, row: Recorded, terms: Terms) -> None:
        if terms.group or terms.multiplier_ppm != PPM:
            name = (terms.group, terms.group_version, terms.multiplier_ppm)
            self._applied.setdefault(name, (row.stream, row.version))

    def finish(self) -> None:
        for (group, number, multiplier_ppm), (stream, version) in self._applied.items():
            if self._defined.get((group, number)) != multiplier_ppm:
                what = f"a multiplier of {multiplier_ppm} that group {group!r} never had"
                self._findings.add(PROVENANCE, stream, version, what)

    def saved(self) -> GroupsSaved:
        return GroupsSaved(
            [(*name, multiplier_ppm) for name, multiplier_ppm in self._defined.items()],
            [(*name, *place) for name, place in self._applied.items()],
        )

    def resume(self, saved: GroupsSaved) -> None:
        for group, version, multiplier_ppm in saved.defined:
            self._defined[group, version] = multiplier_ppm
        for group, number, multiplier_ppm, stream, version in saved.applied:
            self._applied[group, number, multiplier_ppm] = (stream, version)
