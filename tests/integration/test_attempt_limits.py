"""Guesses of codes and passwords, and registrations: exactly so many, whoever counts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from backend.http.attempts import Attempt, AttemptLimits
from backend.kit.clock import SystemRandomness
from backend.kit.secrets import SiteSecret
from backend.kit.settings import AttemptSettings
from schemas.errors import RateLimited, Unavailable
from tests.embedded_site import eventually
from tests.valkey import ValkeyServer, valkey_server

SECRET = SiteSecret("q9Zr1Vx7Lw3Tn5Kp8Hd2Gs6Fb4Jc0Ym+")
HERE, THERE = ip_address("192.0.2.9"), ip_address("198.51.100.7")


@asynccontextmanager
async def limits_of(server: ValkeyServer, **settings: Any) -> AsyncGenerator[AttemptLimits]:
    client = server.client()
    yield AttemptLimits(client, SECRET, SystemRandomness(), AttemptSettings(**settings))
    await client.close()


@pytest.fixture
async def attempts(valkey: ValkeyServer) -> AsyncIterator[AttemptLimits]:
    async with limits_of(valkey) as limits:
        yield limits


async def refused(attempt: Awaitable[Attempt]) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        await attempt
    return caught.value


async def test_the_eleventh_unknown_code_of_an_account_is_refused_and_told_when_to_return(
    attempts: AttemptLimits,
) -> None:
    for number in range(10):
        await attempts.check("code", account="account:1", address=ip_address(f"192.0.2.{number}"))
    error = await refused(attempts.check("code", account="account:1", address=THERE))
    assert (error.status, error.code, error.limit) == (429, "rate_limit_exceeded", 10)
    assert 590 <= (error.retry_after_s or 0) <= 600
    assert error.sentence == f"Too many unknown codes; try again in {error.retry_after_s} s."
    await attempts.check("code", account="account:2", address=THERE)


async def test_many_accounts_at_one_address_share_its_guesses(attempts: AttemptLimits) -> None:
    for number in range(10):
        await attempts.check("code", account=f"account:{number}", address=HERE)
    await refused(attempts.check("code", account="account:99", address=HERE))
    await attempts.check("code", account="account:99", address=THERE)


async def test_a_refused_guess_is_not_counted_against_the_account(attempts: AttemptLimits) -> None:
    for number in range(10):
        await attempts.check("code", account=f"account:{number}", address=HERE)
    for _ in range(20):
        await refused(attempts.check("code", account="account:99", address=HERE))
    for number in range(10):
        await attempts.check("code", account="account:99", address=ip_address(f"10.0.0.{number}"))


async def test_a_good_code_is_no_guess(attempts: AttemptLimits) -> None:
    for _ in range(50):
        attempt = await attempts.check("code", account="account:1", address=HERE)
        await attempts.forgive(attempt)
    for _ in range(10):
        await attempts.check("code", account="account:1", address=HERE)
    await refused(attempts.check("code", account="account:1", address=HERE))


@pytest.mark.parametrize("good", [0, 3])
async def test_of_fifty_guesses_at_once_exactly_ten_are_looked_at(
    valkey: ValkeyServer, good: int
) -> None:
    """Over four processes. Each good one that was let in leaves room for one more."""
    looked_at = 0

    async def guess(limits: AttemptLimits, *, is_good: bool) -> None:
        nonlocal looked_at
        try:
            attempt = await limits.check("code", account="account:1", address=HERE)
        except RateLimited:
            return
        looked_at += 1
        if is_good:
            await limits.forgive(attempt)

    async with AsyncExitStack() as stack:
        four = [await stack.enter_async_context(limits_of(valkey)) for _ in range(4)]
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(guess(four[number % 4], is_good=number < good))
        bad = await _guesses_left(four[0])
    assert 10 <= looked_at <= 10 + good
    assert bad <= good, "only what was taken back could be guessed again"


async def _guesses_left(limits: AttemptLimits) -> int:
    left = 0
    while True:
        try:
            await limits.check("code", account="account:1", address=HERE)
        except RateLimited:
            return left
        left += 1


async def test_an_attempt_cannot_be_taken_back_from_a_later_window(valkey: ValkeyServer) -> None:
    async with limits_of(valkey, registrations=1, registration_window_s=0.2) as limits:
        early = await limits.check("register", address=HERE)
        await eventually(lambda: not valkey.entries())
        await limits.check("register", address=HERE)
        await limits.forgive(early)
        await refused(limits.check("register", address=HERE))


async def test_a_window_begins_with_its_first_attempt_and_ends_by_itself(
    valkey: ValkeyServer,
) -> None:
    async with limits_of(valkey, registrations=2, registration_window_s=0.3) as limits:
        began_s = time.monotonic()
        await limits.check("register", address=HERE)
        await limits.check("register", address=HERE)
        error = await refused(limits.check("register", address=HERE))
        assert error.retry_after_s == 1
        await eventually(lambda: not valkey.entries())
        assert time.monotonic() - began_s > 0.25
        await limits.check("register", address=HERE)


async def test_signing_in_is_limited_by_name_and_address_together(attempts: AttemptLimits) -> None:
    for name in ("Anna", "anna", "ANNA", "ａｎｎａ", "aNna"):
        await attempts.check("login", account=name, address=HERE)
        await attempts.check("login", account=name, address=HERE)
    error = await refused(attempts.check("login", account="anna", address=HERE))
    assert error.sentence.startswith("Too many failed sign-ins; try again in ")
    await attempts.check("login", account="anna", address=THERE)
    await attempts.check("login", account="boris", address=HERE)


async def test_one_address_cannot_try_every_name(valkey: ValkeyServer) -> None:
    async with limits_of(valkey, login_address_failures=20) as limits:
        for number in range(20):
            await limits.check("login", account=f"name-{number}", address=HERE)
        await refused(limits.check("login", account="name-21", address=HERE))


async def test_an_ipv6_customer_registers_no_more_often_for_having_many_addresses(
    attempts: AttemptLimits,
) -> None:
    for number in range(5):
        await attempts.check("register", address=ip_address(f"2001:db8:0:1::{number}"))
    error = await refused(attempts.check("register", address=ip_address("2001:db8:0:1:9::1")))
    assert 3590 <= (error.retry_after_s or 0) <= 3600
    await attempts.check("register", address=ip_address("2001:db8:0:2::1"))


async def test_neither_name_nor_address_is_written_down(
    attempts: AttemptLimits, valkey: ValkeyServer
) -> None:
    await attempts.check("login", account="canary-name", address=HERE)
    await attempts.check("code", account="account:4711", address=HERE)
    stored = b" ".join(key + value for key, value in valkey.entries().items())
    assert stored
    for private in (b"canary", b"192.0.2", b"4711"):
        assert private not in stored


@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_where_valkey_does_not_answer_nobody_may_guess(how: str) -> None:
    with valkey_server() as server:
        async with limits_of(server) as limits:
            attempt = await limits.check("code", account="account:1", address=HERE)
            server.stop() if how == "stopped" else server.freeze()
            for kind in ("code", "login", "register"):
                with pytest.raises(Unavailable) as caught:
                    await limits.check(kind, account="a", address=HERE)
                assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
                assert "Valkey" not in caught.value.sentence
            await limits.forgive(attempt)
            server.start() if how == "stopped" else server.thaw()
            await limits.check("code", account="account:1", address=HERE)
