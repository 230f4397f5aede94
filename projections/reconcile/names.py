"""Which of our upstream model names and the bill's mean the same model. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_SNAPSHOT: Final = re.compile(r"-(\d{4}-\d{2}-\d{2}|20\d{6}|\d{4}|latest)$")
"""`gpt-4o-2024-08-06`, `claude-sonnet-4-20250514`, `gpt-4-0613`, `…-latest`."""


def family_of(model: str) -> str:
    """The name without the date of a snapshot."""
    return _SNAPSHOT.sub("", model)


def groups_of(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Name → the name under which it is compared.

    A family in which both sides use the same names is compared name by name. Where they do not
    (we ask for `gpt-4o`, the bill says which snapshot answered), it is compared as a whole.
    """
    here, there = _by_family(ours), _by_family(theirs)
    groups: dict[str, str] = {}
    for family in here.keys() | there.keys():
        mine, its = here.get(family, set()), there.get(family, set())
        apart = mine == its or not mine or not its
        for name in mine | its:
            groups[name] = name if apart else family
    return groups


def _by_family(names: Iterable[str]) -> dict[str, set[str]]:
    families: dict[str, set[str]] = {}
    for name in names:
        families.setdefault(family_of(name), set()).add(name)
    return families
