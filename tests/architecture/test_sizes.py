"""Our own size table, printed in every run, and the limits that nothing may pass."""

from __future__ import annotations

import ast
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.architecture.sources import EVERYTHING, FunctionNode, Source, functions, sources

if TYPE_CHECKING:
    import pytest

FUNCTION_LINES_AIMED: Final = 40
FUNCTION_LINES_MAX: Final = 70
FILE_LINES_AIMED: Final = 300
FILE_LINES_MAX: Final = 500
NESTING_AIMED: Final = 3
NESTING_MAX: Final = 5
LINE_CHARS_MAX: Final = 100

BLOCKS: Final = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match,
)  # fmt: skip


class Size(NamedTuple):
    place: str
    lines: int
    nesting: int


def function_lines(node: FunctionNode) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def nesting(node: ast.AST) -> int:
    """How many blocks lie in one another at the deepest; `elif` is no deeper than its `if`."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, FunctionNode | ast.ClassDef):
                continue
            is_elif = isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If)
            own = 1 if isinstance(child, BLOCKS) and not (is_elif and len(children) == 1) else 0
            deepest = max(deepest, own + nesting(child))
    return deepest


def sizes_of(source: Source) -> list[Size]:
    return [
        Size(f"{source.name}:{node.lineno} {name}", function_lines(node), nesting(node))
        for name, node in functions(source.tree)
    ]


def table() -> str:
    heads = ("", "files", "lines", "file max", "functions", "median", "p90", "max",
             f">{FUNCTION_LINES_AIMED}", f"nest>{NESTING_AIMED}")  # fmt: skip
    rows = [f"{heads[0]:<12}" + "".join(f"{head:>10}" for head in heads[1:])]
    for folder in EVERYTHING:
        files = [source.text.count("\n") for source in sources(folder)]
        found = [size for source in sources(folder) for size in sizes_of(source)]
        if not files or len(found) < 2:
            continue
        lines = [size.lines for size in found]
        figures = (
            len(files), sum(files), max(files), len(lines), int(median(lines)),
            int(quantiles(lines, n=10)[-1]), max(lines),
            sum(count > FUNCTION_LINES_AIMED for count in lines),
            sum(size.nesting > NESTING_AIMED for size in found),
        )  # fmt: skip
        rows.append(f"{folder:<12}" + "".join(f"{figure:>10}" for figure in figures))
    return "\n".join(rows)


def test_size_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = table()
    with capsys.disabled():
        print(f"\n{text}")
    assert len(text.splitlines()) > len(EVERYTHING) // 2


def test_no_function_is_longer_than_the_limit() -> None:
    found = [
        f"{size.place}: {size.lines} lines, at most {FUNCTION_LINES_MAX}"
        for source in sources(*EVERYTHING)
        for size in sizes_of(source)
        if size.lines > FUNCTION_LINES_MAX
    ]
    assert not found, "\n".join(found)


def test_no_file_is_longer_than_the_limit() -> None:
    found = [
        f"{source.name}: {lines} lines, at most {FILE_LINES_MAX}"
        for source in sources(*EVERYTHING)
        if (lines := source.text.count("\n")) > FILE_LINES_MAX
    ]
    assert not found, "\n".join(found)


def test_no_function_is_nested_deeper_than_the_limit() -> None:
    found = [
        f"{size.place}: {size.nesting} deep, at most {NESTING_MAX}"
        for source in sources(*EVERYTHING)
        for size in sizes_of(source)
        if size.nesting > NESTING_MAX
    ]
    assert not found, "\n".join(found)


def test_measures_count_as_people_do() -> None:
    tree = ast.parse(
        'def f(a):\n    """Words\n    more."""\n    if a:\n        pass\n'
        "    elif not a:\n        for _ in a:\n            pass\n    return a\n"
    )
    ((_, node),) = functions(tree)
    assert function_lines(node) == 7
    assert nesting(node) == 2
