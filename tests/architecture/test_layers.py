"""Who may import whom: the contracts in pyproject.toml, and rules they cannot express."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.architecture.sources import ROOT, functions, imported_modules, sources

DOMAINS: Final = ("backend/ledger", "backend/catalog", "backend/identity")

IMPURE: Final = {
    "aiohttp", "aiokafka", "asyncio", "faststream", "httpx", "litestar", "os", "psycopg",
    "psycopg_pool", "random", "redis", "secrets", "socket", "structlog", "threading", "time",
    "uvicorn",
}  # fmt: skip
"""Clocks, randomness, drivers and frameworks: arguments of a decision, not imports."""


def test_layers_import_only_what_lies_below_them() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run(
        [lint_imports, "--no-logo", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_schemas_import_msgspec_and_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"msgspec", "schemas"}
    found = [
        f"{source.name}:{line} imports {module}"
        for source in sources("schemas")
        for line, module in imported_modules(source.tree)
        if module.partition(".")[0] not in allowed
    ]
    assert not found, "\n".join(found)


def test_decisions_and_folds_import_no_clock_no_randomness_and_no_driver() -> None:
    seen = 0
    found: list[str] = []
    for source in sources(*DOMAINS):
        names = [name.rpartition(".")[2] for name, _ in functions(source.tree)]
        if not any(name.startswith("decide_") or name == "apply" for name in names):
            continue
        seen += 1
        found += [
            f"{source.name}:{line} decides or folds, and imports {module}"
            for line, module in imported_modules(source.tree)
            if module.partition(".")[0] in IMPURE
        ]
    assert not found, "\n".join(found)
    assert seen >= len(DOMAINS), "the decisions are no longer where this test looks for them"


def test_decisions_and_folds_are_no_coroutines() -> None:
    found = [
        f"{source.name}:{node.lineno} {name}"
        for source in sources(*DOMAINS)
        for name, node in functions(source.tree)
        if (node.name.startswith("decide_") or node.name == "apply")
        and type(node).__name__ == "AsyncFunctionDef"
    ]
    assert not found, "\n".join(found)


def test_a_site_without_kafka_loads_no_kafka_client() -> None:
    question = (
        "import sys, backend.cli, backend.app; "
        "print(*sorted({'faststream', 'aiokafka'} & sys.modules.keys()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == ""
