#!/usr/bin/env python3
"""The verbs of development: make the environment, run the site, test it, check it.

Standard library only, because it runs before anything is installed. `Makefile` forwards here.
"""

from __future__ import annotations

import sys

# Before the imports that an older Python lacks.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")

import argparse
import os
import shutil
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NoReturn
from xml.etree import ElementTree

import locks
from environment import (
    CACHE,
    NODE_TESTS,
    ROOT,
    Trouble,
    call,
    ensure_everything,
    ensure_venv,
    environment,
    say,
    tool,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TIERS: Final = ("unit", "architecture", "model", "security", "integration", "compat")
"""Folders of tests/, from cheap to dear: they mostly wait, so several run side by side."""
LAST_TIER: Final = "faults"
"""Puts a site under load and kills it: alone, so that nothing else is blamed for it."""
PARALLEL: Final = ("--numprocesses=3", "--dist=loadfile")


def setup(_: Sequence[str]) -> int:
    """make .venv and fetch what run and test need, so that both work offline afterwards"""
    ensure_everything()
    say("ready: make run, make test")
    return 0


def run(arguments: Sequence[str]) -> int:
    """start the site with everything it needs on http://127.0.0.1:8000 (PORT=…)"""
    ensure_venv()
    port = os.environ.get("PORT") or "8000"
    execute(tool("suanpan"), "serve", "--port", port, *arguments)


def test(arguments: Sequence[str]) -> int:
    """run the tests, cheap tiers first; further words go to pytest"""
    ensure_everything()
    if any((ROOT / word.partition("::")[0]).exists() for word in arguments):
        return call(tool("python"), "-m", "pytest", *arguments)
    started = time.monotonic()
    side_by_side = [*PARALLEL, *(f"tests/{tier}" for tier in TIERS)]
    reports = {CACHE / "tests.xml": side_by_side, CACHE / "faults.xml": [f"tests/{LAST_TIER}"]}
    status = 0
    for report, words in reports.items():
        report.unlink(missing_ok=True)
        status |= call(
            tool("python"), "-m", "pytest", "-q", f"--junitxml={report}", *arguments, *words
        )
    print_tiers([report for report in reports if report.exists()], time.monotonic() - started)
    return status


def check(_: Sequence[str]) -> int:
    """formatting, lint, types, layers, architecture tests, locks"""
    ensure_venv()
    steps: tuple[tuple[str, Callable[[], int]], ...] = (
        ("format", lambda: call(tool("ruff"), "format", "--check", ".")),
        ("lint", lambda: call(tool("ruff"), "check", ".")),
        ("types", lambda: call(tool("basedpyright"))),
        ("layers", lambda: call(tool("lint-imports"), "--no-logo")),
        ("architecture", lambda: call(tool("python"), "-m", "pytest", "-q", "tests/architecture")),
        ("locks", locks.check_locks),
    )
    failed: list[str] = []
    for name, step in steps:
        say(name)
        if step() != 0:
            failed.append(name)
    say(f"failed: {', '.join(failed)}" if failed else "all checks pass")
    return 1 if failed else 0


def bench(arguments: Sequence[str]) -> int:
    """measure the relay against a direct call; further words go to the benchmark"""
    ensure_venv()
    execute(tool("python"), "-m", "bench", *arguments)


def faults(arguments: Sequence[str]) -> int:
    """every fault under load, 10 rounds each (--rounds N), and their table"""
    ensure_everything()
    parser = argparse.ArgumentParser(prog="dev.py faults", add_help=False)
    parser.add_argument("--rounds", default=os.environ.get("SUANPAN_FAULT_ROUNDS") or "10")
    chosen, words = parser.parse_known_args(arguments)
    if not any(word.startswith("tests/") for word in words):
        words = ["tests/faults", *words]
    if not any(word.startswith("--fault-report") for word in words):
        words = [*words, f"--fault-report={CACHE / 'faults'}"]
    return call(
        tool("python"), "-m", "pytest", "-q", *words,
        extra={"SUANPAN_FAULT_ROUNDS": chosen.rounds},
    )  # fmt: skip


def fmt(_: Sequence[str]) -> int:
    """format the code and repair what lint can repair"""
    ensure_venv()
    return call(tool("ruff"), "check", "--fix", "--quiet", ".") | call(tool("ruff"), "format", ".")


def lock(arguments: Sequence[str]) -> int:
    """compile requirements/*.txt from pyproject.toml (--upgrade takes newer versions)"""
    ensure_venv()
    return locks.compile_locks(arguments)


def clean(_: Sequence[str]) -> int:
    """remove .venv, .cache and other things made here; the site's data stays"""
    for name in (".venv", ".cache", ".ruff_cache", ".import_linter_cache", ".hypothesis", "build"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for folder in (*ROOT.glob("*.egg-info"), *ROOT.glob("**/__pycache__")):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(NODE_TESTS / "node_modules", ignore_errors=True)
    data = ROOT / ".data"
    if data.exists():
        say(f"kept {data}: accounts and their ledger; delete it yourself if you mean it")
    return 0


VERBS: Final[tuple[Callable[[Sequence[str]], int], ...]] = (
    setup, run, test, check, bench, faults, fmt, lock, clean,
)  # fmt: skip


def execute(*command: str | Path) -> NoReturn:
    """Become the command, so that signals reach it and no process of ours waits beside it."""
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execve(command[0], [str(part) for part in command], environment())  # noqa: S606


def print_tiers(reports: Sequence[Path], seconds: float) -> None:
    """One line per tier: passed, failed, skipped, seconds."""
    counts: dict[str, Counter[str]] = {}
    # Written by pytest a moment ago, on this machine.
    cases = (case for file in reports for case in ElementTree.parse(file).iter("testcase"))  # noqa: S314
    for case in cases:
        tier = (case.get("classname") or "tests.?").split(".")[1]
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "passed"
        counts.setdefault(tier, Counter()).update(
            {"skipped" if "skipped" in tags else outcome: 1, "ms": int(1000 * case_seconds(case))}
        )
    print(f"\n{'tier':<14}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for tier, count in counts.items():
        figures = f"{count['passed']:>8}{count['failed']:>8}{count['skipped']:>9}"
        print(f"{tier:<14}{figures}{count['ms'] / 1000:>9.1f}")
    total = sum(counts.values(), Counter[str]())
    figures = f"{total['passed']:>8}{total['failed']:>8}{total['skipped']:>9}"
    print(f"{'all':<14}{figures}{seconds:>9.1f}")
    if total["skipped"]:
        say("skipped tests say why above; SUANPAN_TEST_REQUIRE_ALL=1 makes them fail instead")


def case_seconds(case: ElementTree.Element) -> float:
    return float(case.get("time", "0"))


def main(words: Sequence[str]) -> int:
    verbs = {verb.__name__: verb for verb in VERBS}
    listing = "\n".join(f"  {name:<8}{verb.__doc__}" for name, verb in verbs.items())
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description=f"verbs:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=verbs, metavar="verb")
    chosen = parser.parse_args(words[:1])
    try:
        return verbs[chosen.verb](words[1:])
    except Trouble as trouble:
        warn(str(trouble))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
