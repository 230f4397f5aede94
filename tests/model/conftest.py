"""A failing model test says how to repeat it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.histories import SEED, TIMES


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" and report.failed:
        again = (
            f'SUANPAN_MODEL_SEED={SEED} SUANPAN_MODEL_TIMES={TIMES} make test ARGS="tests/model"'
        )
        report.sections.append(("to repeat these histories", again))
    return report
