"""Every SQL statement in the product is understood by PostgreSQL against the migrated schema."""

from __future__ import annotations

import ast
import re
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.pq import ExecStatus

from backend.kit.postgres import make_pool
from projections.tables import ensure_tables
from tests.architecture.sources import PRODUCT, docstring_nodes, sources

STATEMENT: Final = re.compile(
    r"\s*(--[^\n]*\n\s*)*"
    r"(SELECT\s|INSERT INTO\s|UPDATE\s+\w+|DELETE FROM\s|WITH\s+(RECURSIVE\s+)?\w+|MERGE INTO\s|"
    r"LOCK TABLE\s|LISTEN\s+\w+|NOTIFY\s+\w+|TRUNCATE\s|CREATE\s|ALTER\s|DROP\s|GRANT\s|SET\s|"
    r"DO\s+\$)"
)
PLACEHOLDER: Final = re.compile(r"%(?:\((?P<name>\w+)\))?(?P<kind>[sbt%])")

NEEDS_MORE: Final[dict[str, str]] = {}
"""`path::first words` of statements that only make sense after another one → which, and why."""


class Statement(NamedTuple):
    place: str
    text: str


def statements() -> list[Statement]:
    """Every string constant of the product that is an SQL statement, wherever it stands."""
    return [
        Statement(f"{source.name}:{node.lineno}", node.value)
        for source in sources(*PRODUCT)
        for node in _constants(source.tree)
        if isinstance(node.value, str) and STATEMENT.match(node.value)
    ]


def numbered(text: str) -> str:
    """psycopg's `%(name)s` and `%s` as the server's `$1`; one number per name."""
    numbers: dict[str, int] = {}

    def replace(found: re.Match[str]) -> str:
        if found["kind"] == "%":
            return "%"
        key = found["name"] or f"{len(numbers)} by position"
        return f"${numbers.setdefault(key, len(numbers) + 1)}"

    # Without placeholders psycopg sends the text as it is: `%` then means itself.
    return PLACEHOLDER.sub(replace, text) if re.search(r"%(\(\w+\))?[sbt]", text) else text


async def _with_read_tables(url: str) -> None:
    async with make_pool(url, application="statements", size_max=1) as pool:
        await ensure_tables(pool)


async def test_every_statement_prepares_against_the_migrated_schema(database: Any) -> None:
    await _with_read_tables(database.app_url)
    found = statements()
    assert len(found) > 20, "the statements are no longer where this test looks for them"
    refused: list[str] = []
    with psycopg.connect(database.app_url, autocommit=True) as connection:
        connection.execute("SET search_path = read, public")
        for statement in found:
            if f"{statement.place.partition(':')[0]}::{_first_words(statement)}" in NEEDS_MORE:
                continue
            query = numbered(statement.text).encode()
            answer = connection.pgconn.prepare(b"", query)
            if answer.status != ExecStatus.COMMAND_OK:
                refused.append(f"{statement.place}: {answer.error_message.decode().strip()}")
    assert not refused, "\n".join(refused)


def test_a_statement_that_names_no_column_of_ours_is_refused(database: Any) -> None:
    with psycopg.connect(database.app_url, autocommit=True) as connection:
        answer = connection.pgconn.prepare(b"", b"SELECT no_such_column FROM streams")
    assert answer.status == ExecStatus.FATAL_ERROR


def test_placeholders_become_numbers() -> None:
    assert numbered("SELECT %(b)s, %(a)s, %(b)s, 7 %% 2") == "SELECT $1, $2, $1, 7 % 2"
    assert numbered("SELECT %s, %s") == "SELECT $1, $2"
    assert numbered("SELECT format('%I', 'x')") == "SELECT format('%I', 'x')"


def _constants(tree: ast.Module) -> list[ast.Constant]:
    """Constants that are neither documentation nor templates of `sql.SQL`, filled in later."""
    templates = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "SQL"
        for argument in node.args
    }
    passed_over = docstring_nodes(tree) | templates
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in passed_over
    ]


def _first_words(statement: Statement) -> str:
    return " ".join(statement.text.split()[:4])
