"""A PostgreSQL that is too old is named, with what to do about it."""

from __future__ import annotations

import pytest

from backend.journal.migrate import check_version
from schemas.errors import SiteProblem


def test_an_old_server_is_refused_by_its_version() -> None:
    with pytest.raises(SiteProblem, match="PostgreSQL 15: Suanpan needs 17"):
        check_version(150_018)


def test_a_server_that_can_hold_the_schema_is_taken() -> None:
    check_version(170_000)
    check_version(180_004)
