"""An audit of a site that nobody touched finds nothing, whatever happened there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from projections.audit.report import CHECKS
from tests.integration.audited_site import audited, make_history, open_site, project


async def test_a_history_of_every_event_is_sound(database: Any) -> None:
    await make_history(database.app_url)
    report = await audited(database.app_url)
    assert [check for check in report.checks if not check.ok] == []
    assert report.ok
    assert (report.events, report.streams) == (27, 9)
