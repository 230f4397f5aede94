"""A command that is repeated once its log was imported anew is answered as it was before."""

from __future__ import annotations

from uuid import UUID

import psycopg

from backend.folds import ALL_FOLDS
from backend.journal.importing import Importer, no_open_requests
from backend.journal.reader import read_all
from backend.kit.postgres import connect
from backend.kit.secrets import SiteSecret
from backend.ledger.codes import Codes, IssueAsked
from schemas.event import START
from schemas.ids import PersonId
from schemas.ledger import CodeKind
from schemas.money import MicroPoints
from tests.conftest import Database, Server
from tests.given import CLOCK, POINT, RANDOMNESS
from tests.integration.identity_site import SECRET_TEXT
from tests.integration.ledger_site import LedgerSite, ledger_on

OWNER = PersonId(1)


def codes_of(site: LedgerSite) -> Codes:
    return Codes(site.writer, site.pool, SiteSecret(SECRET_TEXT), RANDOMNESS, CLOCK)


async def imported(lost: Database, into: Database) -> None:
    async with await connect(lost.app_url, application="test") as connection:
        rows = [row async for page in read_all(connection, START) for row in page]
    with psycopg.connect(lost.superuser_url) as one, psycopg.connect(into.superuser_url) as other:
        found = one.execute("SELECT site_id FROM site").fetchone()
        assert found is not None
        site_id: UUID = found[0]
        other.execute("UPDATE site SET site_id = %s", (site_id,))
    async with await connect(into.app_url, application="test") as connection:
        importer = Importer(connection, ALL_FOLDS, site_id)
        await importer.begin()
        await importer.take(rows)
        await importer.complete(no_open_requests)


async def test_a_code_redeemed_before_the_log_was_lost_is_answered_as_then(
    database: Database, server: Server
) -> None:
    asked = IssueAsked(CodeKind.REDEEM, MicroPoints(7 * POINT), 1)
    async with ledger_on(database.app_url, ALL_FOLDS) as site:
        await site.open_account(OWNER, 0)
        (text,) = (await codes_of(site).issue(asked, actor="cli", batch="b")).codes
        first = await codes_of(site).redeem(OWNER, CodeKind.REDEEM, text, "a key")
    restored = server.fresh()
    try:
        await imported(database, restored)
        async with ledger_on(restored.app_url, ALL_FOLDS) as site:
            again = await codes_of(site).redeem(OWNER, CodeKind.REDEEM, text, "a key")
    finally:
        server.drop(restored)
    assert again.repeated
    assert (again.stream, again.version) == (first.stream, first.version)
    assert again.available_upt == first.available_upt == 7 * POINT
