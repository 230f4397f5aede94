"""Runs one role of the site in this process, perhaps sampling what its main thread does.

`python -m bench.role ROLE [--profile FILE]`; settings come from the environment as for `suanpan`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from backend.app import ROLES, run
from backend.kit.settings import load_settings
from bench.lifetime import end_with_parent
from bench.sampler import sampling
from schemas.errors import SiteProblem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--profile", type=Path)
    chosen = parser.parse_args()
    try:
        with sampling(chosen.profile):
            run(chosen.role, load_settings(os.environ), say=_quiet)
    except SiteProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def _quiet(text: str) -> None:
    """Nobody reads a child's standard output."""


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
