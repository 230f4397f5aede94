"""House rules that no linter knows: SQL, last resorts, money without floats, names, words."""

from __future__ import annotations

import ast
import re
from typing import Final

from tests.architecture.sources import (
    EVERYTHING,
    FOREIGN,
    PRODUCT,
    ROOT,
    Source,
    docstring_nodes,
    functions,
    sources,
)

LAST_RESORTS: Final[dict[str, str]] = {
    "backend/http/relay/chat.py::ChatFront.__call__": (
        "whatever went wrong, a client gets an answer in its dialect and the log gets the trace"
    ),
    "backend/journal/kafka_transport.py::_Feed.handle": (
        "a consumer that fails halts and alarms; the client library would swallow the error"
    ),
    "backend/journal/lane.py::Round.decide": (
        "a programmer's error in one decision fails that command, not the writer all accounts share"
    ),
    "backend/journal/lane.py::Lane._commit": (
        "a stream that cannot be read or laid out fails alone, not the writer all accounts share"
    ),
}
"""`path::function` of each place that may catch everything → why nothing narrower will do."""

SQL_START: Final = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|MERGE INTO|LOCK TABLE|LISTEN|NOTIFY|TRUNCATE|"
    r"COPY|CREATE|ALTER|DROP|GRANT|REVOKE|SET)\s"
)
EXECUTES: Final = {"execute", "executemany", "copy", "fetch_all", "fetch_one", "stream"}

MONEY: Final = (
    "schemas/money.py",
    "schemas/prices.py",
    "schemas/usage.py",
    "schemas/ledger.py",
    "backend/ledger/",
)
UNITS_OF_TIME: Final = ("_s", "_S", "_ms", "_MS")

FORBIDDEN_NAMES: Final = {
    "utils", "util", "helpers", "helper", "manager", "common", "misc", "base", "core",
}  # fmt: skip
NOTES_TO_SELF: Final = re.compile(
    "|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b"))
)
WRITTEN_BY_US: Final = {".py", ".sql", ".html", ".sh", ".toml", ".yaml", ".yml", ".js", ".mjs"}


def test_sql_is_never_built_from_strings() -> None:
    found = [
        f"{source.name}:{node.lineno} hands built text to {name}()"
        for source in sources(*PRODUCT, "bench")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and (name := _called(node)) in EXECUTES
        and node.args
        and _is_built(node.args[0])
    ]
    found += [
        f"{source.name}:{node.lineno} builds SQL"
        for source in sources(*PRODUCT, "bench")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.expr) and _is_built(node) and SQL_START.match(_first_text(node))
    ]
    assert not found, "\n".join(found)


def test_nothing_catches_everything_outside_the_named_last_resorts() -> None:
    places: dict[str, int] = {}
    for source in sources(*PRODUCT, "bench", "scripts", "deploy"):
        for line in _broad_catches(source.tree):
            places[f"{source.name}::{_function_at(source, line)}"] = line
    unnamed = [
        f"{place} (line {line})" for place, line in places.items() if place not in LAST_RESORTS
    ]
    assert not unnamed, "\n".join(unnamed)
    gone = LAST_RESORTS.keys() - places.keys()
    assert not gone, f"named as last resorts, but they catch nothing broad: {sorted(gone)}"


def test_money_meets_no_float() -> None:
    found = [
        f"{source.name}:{line} {what}"
        for source in sources("schemas", "backend/ledger")
        if source.name.startswith(MONEY)
        for line, what in _floats(source.tree)
    ]
    assert not found, "\n".join(found)


def test_modules_have_names_that_say_something() -> None:
    found = [
        source.name
        for source in sources(*EVERYTHING)
        if FORBIDDEN_NAMES & set(source.name.removesuffix(".py").split("/"))
    ]
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is_for() -> None:
    found = [
        source.name
        for source in sources(*EVERYTHING)
        if source.text.strip() and not ast.get_docstring(source.tree)
    ]
    assert not found, "\n".join(found)


def test_no_notes_to_self_are_left_in_files() -> None:
    found: list[str] = []
    for folder in (*EVERYTHING, "docs", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in WRITTEN_BY_US or FOREIGN & set(path.parts):
                continue
            lines = path.read_text("utf-8").splitlines()
            found += [
                f"{path.relative_to(ROOT)}:{number}"
                for number, line in enumerate(lines, 1)
                if NOTES_TO_SELF.search(line)
            ]
    assert not found, "\n".join(found)


def test_the_rules_see_what_they_forbid() -> None:
    built = ast.parse('c.execute(f"SELECT {x}")').body[0]
    assert isinstance(built, ast.Expr)
    assert isinstance(built.value, ast.Call)
    assert _is_built(built.value.args[0])
    assert _broad_catches(ast.parse("try:\n    f()\nexcept (OSError, Exception):\n    pass")) == [3]
    assert _broad_catches(ast.parse("with suppress(BaseException):\n    pass")) == [1]
    assert [line for line, _ in _floats(ast.parse("wait_s = 0.5\nprice = 0.5\nx = a / b"))] == [
        2,
        3,
    ]


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def _is_built(node: ast.AST) -> bool:
    """Whether the value is text put together while running. `sql.SQL(…).format(…)` may."""
    match node:
        case ast.JoinedStr(values=parts):
            return any(isinstance(part, ast.FormattedValue) for part in parts)
        case ast.BinOp(op=ast.Add() | ast.Mod(), left=left, right=right):
            return any(_is_text(side) or _is_built(side) for side in (left, right))
        case ast.Call(func=ast.Attribute(attr="format" | "join" | "replace", value=value)):
            return _is_text(value) or _is_built(value)
        case _:
            return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _first_text(node: ast.AST) -> str:
    """The first literal text inside a built value."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            return child.value
    return ""


def _broad_catches(tree: ast.Module) -> list[int]:
    """Lines that catch every exception: bare, by name, in a tuple, or by `suppress`."""
    found: list[int] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = [node.type]
        elif isinstance(node, ast.Call) and _called(node) == "suppress":
            caught = list(node.args)
        else:
            continue
        names = {
            name.id if isinstance(name, ast.Name) else None
            for kind in caught
            for name in (kind.elts if isinstance(kind, ast.Tuple) else [kind])
            if not isinstance(name, ast.Attribute)
        }
        bare = isinstance(node, ast.ExceptHandler) and node.type is None
        if bare or names & {"Exception", "BaseException"}:
            found.append(node.lineno)
    return found


def _function_at(source: Source, line: int) -> str:
    """The innermost function around a line, `<module>` if there is none."""
    around = [
        (node.lineno, name)
        for name, node in functions(source.tree)
        if node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return max(around)[1] if around else "<module>"


def _floats(tree: ast.Module) -> list[tuple[int, str]]:
    """Float literals not named in seconds, `float()`, and `/` where no path is meant."""
    timed = {
        id(literal)
        for node in ast.walk(tree)
        for literal in ast.walk(node)
        if _named_in_time(node) and isinstance(literal, ast.Constant)
    }
    has_paths = any(isinstance(node, ast.Name) and node.id == "Path" for node in ast.walk(tree))
    documentation = docstring_nodes(tree)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=float()) if id(node) not in timed | documentation:
                found.append((node.lineno, f"float {node.value}"))
            case ast.Call(func=ast.Name(id="float")):
                found.append((node.lineno, "float()"))
            case ast.BinOp(op=ast.Div(), left=left) if not has_paths and not _is_time(left):
                found.append((node.lineno, "a division that makes a float"))
            case _:
                pass
    return found


def _is_time(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.endswith(UNITS_OF_TIME)
        case _:
            return False


def _named_in_time(node: ast.AST) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name.endswith(UNITS_OF_TIME)
        case ast.keyword(arg=str(name)):
            return name.endswith(UNITS_OF_TIME)
        case _:
            return False
