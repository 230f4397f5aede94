"""The locks in requirements/: compiled from pyproject.toml with hashes, checked for agreement."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import TYPE_CHECKING, Final

from environment import DEV_LOCK, ROOT, call, tool, warn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUN_LOCK: Final = DEV_LOCK.with_name("run.txt")
PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
HASHED_PIN: Final = re.compile(PIN.pattern + r"[^\n]*\\\n\s+--hash=sha256:", re.MULTILINE)


def compile_locks(arguments: Sequence[str]) -> int:
    """Both files, anew; versions already there are kept unless `--upgrade` is among the words."""
    options = (
        "--extra", "embedded", "--group", "build", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-emit-index-url", "--no-header", "--quiet", *arguments,
    )  # fmt: skip
    compile_lock = (tool("uv"), "pip", "compile", "pyproject.toml", *options)
    # The second is bound by the first, so that what is tested is what runs.
    constraint = ("--group", "dev", "--constraint", "requirements/run.txt")
    return call(*compile_lock, "--output-file", "requirements/run.txt") or call(
        *compile_lock, *constraint, "--output-file", "requirements/dev.txt"
    )


def check_locks() -> int:
    """Each package once, each with hashes, run's versions in dev's, every dependency locked."""
    problems: list[str] = []
    pins: dict[Path, dict[str, str]] = {}
    for path in (RUN_LOCK, DEV_LOCK):
        text = path.read_text()
        found = [(normal(name), version) for name, version in PIN.findall(text)]
        repeated = [name for name, times in Counter(name for name, _ in found).items() if times > 1]
        problems += [f"{path.name}: {name} is locked twice" for name in repeated]
        if len(HASHED_PIN.findall(text)) != len(found):
            problems.append(f"{path.name}: a package has no hash")
        if "://" in re.sub(r"(?m)#.*$", "", text):
            problems.append(f"{path.name}: names an address; the installer's own index decides")
        pins[path] = dict(found)
    problems += [
        f"{name}: run has {version}, dev has {pins[DEV_LOCK].get(name)}"
        for name, version in pins[RUN_LOCK].items()
        if pins[DEV_LOCK].get(name) != version
    ]
    run_names, dev_names = declared_dependencies()
    problems += [f"run.txt lacks {name}: make lock" for name in run_names - pins[RUN_LOCK].keys()]
    problems += [f"dev.txt lacks {name}: make lock" for name in dev_names - pins[DEV_LOCK].keys()]
    for problem in problems:
        warn(problem)
    return 1 if problems else 0


def declared_dependencies() -> tuple[set[str], set[str]]:
    """Names that pyproject.toml asks for: to run, and to develop."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    run_lines = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["embedded"],
        *groups["build"],
    ]
    run_names = {normal(re.split(r"[\s\[<>=!~;]", line)[0]) for line in run_lines}
    dev_names = {normal(re.split(r"[\s\[<>=!~;]", line)[0]) for line in groups["dev"]}
    return run_names, run_names | dev_names


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
