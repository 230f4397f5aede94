"""Tests that a document names as `path::name`, and whether they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Final

from tests.architecture.sources import ROOT, FunctionNode

NAMED: Final = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def named_in(text: str) -> list[tuple[str, str]]:
    """(path, name) of each test that a text names."""
    return NAMED.findall(text)


def missing_in(text: str) -> list[str]:
    """Those of them that do not exist."""
    return [
        f"{path}::{name}"
        for path, name in named_in(text)
        if not (ROOT / path).is_file() or name not in names_in(path)
    ]


@cache
def names_in(path: str) -> frozenset[str]:
    """Functions of a test file, methods too."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, FunctionNode))
