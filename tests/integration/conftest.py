"""Running parts that integration tests share."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest_asyncio

from tests.conftest import Database
from tests.integration.ledger_site import LedgerSite, assert_sound, ledger_on


@pytest_asyncio.fixture
async def ledger(database: Database) -> AsyncGenerator[LedgerSite]:
    """A writer and points on a fresh database; what they wrote is checked when the test is over."""
    async with ledger_on(database.app_url) as site:
        yield site
    await assert_sound(database)
