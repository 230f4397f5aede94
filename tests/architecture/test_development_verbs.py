"""The verbs of development: `make` only forwards, each has one line of help, the locks agree."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.architecture.sources import ROOT


def test_make_forwards_exactly_the_verbs_of_the_script() -> None:
    listed = re.search(r"^VERBS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    assert listed[1].split() == list(verbs_with_help())


def test_every_verb_has_one_line_of_help() -> None:
    for verb, words in verbs_with_help().items():
        assert len(words) > 10, verb


def test_locks_hold_each_package_once_with_hashes_and_agree() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "import locks, sys; sys.exit(locks.check_locks())"],
        cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr


def test_the_node_lock_names_no_registry() -> None:
    lock = (ROOT / "tests" / "compat" / "node" / "package-lock.json").read_text()
    assert '"integrity"' in lock
    assert "resolved" not in lock


def verbs_with_help() -> dict[str, str]:
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / "dev.py", "--help"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return dict(
        re.findall(r"^  (\w+) +(\w.+)$", answer.stdout.split("positional")[0], re.MULTILINE)
    )
