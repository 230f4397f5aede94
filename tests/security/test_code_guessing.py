"""Guessing codes: limited per account and address, and nothing told apart that a guesser wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backend.ledger.codes import Codes, IssueAsked, Issued
from schemas.ledger import CodeKind
from schemas.money import MicroPoints
from tests.conftest import Database
from tests.integration.test_identity_people import everything_stored
from tests.site import Customer, Reply, RunningSite, bearer, running_site
from tests.valkey import ValkeyServer

LIMIT = 5
WRONG = "SP-00000-00000-00000-00000-{:06d}"


@pytest.fixture
async def site(
    database: Database, tmp_path: Path, valkey: ValkeyServer
) -> AsyncIterator[RunningSite]:
    async with running_site(
        database, tmp_path, redis_url=valkey.url, attempts_code_guesses=LIMIT
    ) as site:
        yield site


def codes_of(site: RunningSite) -> Codes:
    base = site.base
    return Codes(base.writer, base.pool, base.secret, base.randomness, base.clock)


async def issue(site: RunningSite, count: int = 1, expires_us: int | None = None) -> Issued:
    codes = codes_of(site)
    asked = IssueAsked(CodeKind.REDEEM, MicroPoints(1), count, expires_us=expires_us)
    return await codes.issue(asked, actor="test", batch=codes.new_batch())


async def redeem(site: RunningSite, customer: Customer, text: str, kind: str = "redeem") -> Reply:
    body = json.dumps({"code": text}).encode()
    return await site.send("POST", f"/api/wallet/{kind}", bearer(customer.key), body)


def told(reply: Reply) -> tuple[int, bytes, dict[str, str]]:
    """All that an answer says, but when it was given and which one it is."""
    kept = {name: value for name, value in reply.headers.items() if name != "date"}
    request_id = kept.pop("x-request-id")
    return reply.status, reply.body.replace(request_id.encode(), b"an id"), kept


async def test_unknown_used_expired_and_void_codes_are_answered_alike(site: RunningSite) -> None:
    anna, bert = await site.customer(None), await site.customer(None)
    used, void = (await issue(site, 2)).codes
    (expired,) = (await issue(site, expires_us=site.base.clock.now_us() + 300_000)).codes
    assert (await redeem(site, anna, used)).status == 200
    await codes_of(site).void(void, "test")
    await asyncio.sleep(0.35)  # what is awaited is the time itself
    answers = [
        told(await redeem(site, bert, text))
        for text in (WRONG.format(1), used, expired, void, "", "no code at all", "SP-")
    ]
    assert answers[0][0] == 404
    assert all(answer == answers[0] for answer in answers)


async def test_only_unknown_codes_lock_a_guesser_out_and_for_how_long_is_said(
    site: RunningSite,
) -> None:
    anna = await site.customer(None)
    used, *good = (await issue(site, LIMIT + 2)).codes
    assert (await redeem(site, anna, used)).status == 200
    for text in good[:-1]:
        assert (await redeem(site, anna, used)).status == 404
        assert (await redeem(site, anna, text)).status == 200
    for number in range(LIMIT):
        assert (await redeem(site, anna, WRONG.format(number))).status == 404
    locked = await redeem(site, anna, good[-1])
    assert (locked.status, locked.json["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(locked.headers["retry-after"]) <= 600
    assert locked.headers["content-type"] == "application/problem+json"
    gift = await redeem(site, anna, good[-1], "gift")
    assert gift.status == 429, "both kinds of codes are guessed together"


async def test_other_accounts_at_the_same_address_share_its_guesses(site: RunningSite) -> None:
    guessers = [await site.customer(None) for _ in range(LIMIT)]
    (good,) = (await issue(site)).codes
    for number, guesser in enumerate(guessers):
        assert (await redeem(site, guesser, WRONG.format(number))).status == 404
    anna = await site.customer(None)
    assert (await redeem(site, anna, good)).status == 429
    assert (await site.account(anna)).available_upt == 0


async def test_guesses_at_once_are_not_looked_at_beyond_the_limit(site: RunningSite) -> None:
    anna = await site.customer(None)
    answers = await asyncio.gather(
        *(redeem(site, anna, WRONG.format(number)) for number in range(LIMIT * 6))
    )
    statuses = [answer.status for answer in answers]
    assert (statuses.count(404), statuses.count(429)) == (LIMIT, LIMIT * 5)


async def test_a_code_lies_nowhere_in_clear_and_its_hash_needs_the_secret(
    site: RunningSite, database: Database
) -> None:
    anna = await site.customer(None)
    issued = await issue(site, 3)
    assert (await redeem(site, anna, issued.codes[0])).status == 200
    stored = everything_stored(database.superuser_url)
    for text in issued.codes:
        plain = text.replace("-", "")
        for secret in (text, plain, plain.lower(), text[3:].split("-")[1]):
            assert secret.encode() not in stored
    assert issued.codes[0] not in repr(issued)
