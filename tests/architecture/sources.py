"""Our own source files as syntax trees, for the rules that are checked over all of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
PRODUCT: Final = ("schemas", "backend", "projections", "workers")
EVERYTHING: Final = (*PRODUCT, "bench", "scripts", "deploy", "tests")
FOREIGN: Final = {"node_modules", "__pycache__"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    name: str
    """Path from the root, with slashes."""
    text: str
    tree: ast.Module


def sources(*folders: str) -> list[Source]:
    """Every Python file below the folders, sorted by path."""
    return [source for folder in folders for source in _below(folder)]


@cache
def _below(folder: str) -> tuple[Source, ...]:
    paths = sorted(path for path in (ROOT / folder).rglob("*.py") if not FOREIGN & set(path.parts))
    found: list[Source] = []
    for path in paths:
        text = path.read_text("utf-8")
        found.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return tuple(found)


def functions(tree: ast.Module) -> Iterator[tuple[str, FunctionNode]]:
    """(qualified name, node) of every function, methods and inner functions too."""
    yield from _functions(tree, "")


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            yield f"{prefix}{child.name}", child
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "."


def docstring_nodes(tree: ast.Module) -> set[int]:
    """Identities of the constants that are documentation: bare strings standing as statements."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
