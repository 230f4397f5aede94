"""Processes that count together through Valkey: what they exchange, and what its loss changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from backend.kit.clock import SystemClock, SystemRandomness
from backend.kit.rates import DAY, MINUTE, Counter, Period
from backend.kit.shared_rates import EXCHANGE_EVERY_S, FIRST_READ_S, SharedRates
from tests.embedded_site import eventually
from tests.valkey import ValkeyServer, valkey_server


class Clock(SystemClock):
    """The system's clock, at noon of some day: no window ends while a test runs."""

    def now_us(self) -> int:
        noon_us = 20_000 * DAY.length_us + DAY.length_us // 2 + 10_000_000
        return noon_us + int(time.monotonic() * 1e6) % 30_000_000


@asynccontextmanager
async def process(server: ValkeyServer) -> AsyncGenerator[SharedRates]:
    client = server.client()
    rates = SharedRates(client, Clock(), SystemRandomness())
    rates.start()
    try:
        yield rates
    finally:
        await rates.stop()
        await client.close()


def use(rates: SharedRates, name: str = "a", period: Period | None = DAY) -> Counter:
    return rates.counters.use(name, period, Clock().now_us())


def total(rates: SharedRates, name: str = "a", period: Period | None = DAY) -> int:
    return use(rates, name, period).total(Clock().now_us())


def add(rates: SharedRates, amount: int, name: str = "a", period: Period | None = DAY) -> None:
    use(rates, name, period).add(amount, Clock().now_us())


async def test_processes_hear_of_each_others_counts_within_two_exchanges(
    valkey: ValkeyServer,
) -> None:
    async with process(valkey) as one, process(valkey) as other:
        for period in (MINUTE, DAY, None):
            add(one, 3, str(period), period)
            add(other, 4, str(period), period)
        began_s = time.monotonic()
        await eventually(
            lambda: all(
                total(rates, str(period), period) == 7
                for rates in (one, other)
                for period in (MINUTE, DAY, None)
            )
        )
        assert time.monotonic() - began_s < 4 * EXCHANGE_EVERY_S


async def test_what_is_taken_back_is_taken_back_everywhere(valkey: ValkeyServer) -> None:
    async with process(valkey) as one, process(valkey) as other:
        add(one, 5, period=None)
        await eventually(lambda: total(other, period=None) == 5)
        add(one, -5, period=None)
        await eventually(lambda: total(other, period=None) == 0)


async def test_a_days_count_survives_the_restart_of_its_process(valkey: ValkeyServer) -> None:
    async with process(valkey) as before:
        add(before, 9)
    async with process(valkey) as after:
        counter = use(after)
        began_s = time.monotonic()
        await after.first_read([counter])
        assert counter.known
        assert total(after) == 9
        assert time.monotonic() - began_s < FIRST_READ_S


async def test_counts_are_not_doubled_by_saying_them_again_after_a_wipe(
    valkey: ValkeyServer,
) -> None:
    async with process(valkey) as one, process(valkey) as other:
        add(one, 3)
        add(other, 4)
        await eventually(lambda: total(one) == total(other) == 7)
        valkey.wipe()
        add(one, 1)
        await eventually(lambda: total(one) == total(other) == 8)


async def test_nothing_is_said_where_nothing_is_counted(valkey: ValkeyServer) -> None:
    async with process(valkey):
        before = valkey.commands_run()
        await asyncio.sleep(3 * EXCHANGE_EVERY_S)
        # The two looks themselves: a few commands to connect and to ask.
        assert valkey.commands_run() - before < 10
        assert valkey.entries() == {}


async def test_every_key_ends_by_itself_soon_after_its_window(valkey: ValkeyServer) -> None:
    async with process(valkey) as one:
        add(one, 1, "minute", MINUTE)
        add(one, 1, "now", None)
        await eventually(lambda: len(valkey.entries()) == 2)
        for key in valkey.entries():
            assert 0 < valkey.ttl_ms(key) <= 120_000


async def test_hurrying_tells_others_long_before_the_next_exchange(valkey: ValkeyServer) -> None:
    async with process(valkey) as one, process(valkey) as other:
        await one.first_read([use(one)])
        await other.first_read([use(other)])
        await asyncio.sleep(0.05)
        began_s = time.monotonic()
        add(one, 5)
        one.hurry()
        await eventually(lambda: bool(valkey.entries()) and use(one).unsaid == 0)
        assert time.monotonic() - began_s < EXCHANGE_EVERY_S / 2


async def test_without_valkey_each_counts_alone_and_says_so_until_it_is_back() -> None:
    with valkey_server() as server:
        async with process(server) as one, process(server) as other:
            add(one, 3)
            add(other, 4)
            await eventually(lambda: total(one) == total(other) == 7)
            server.stop()
            add(one, 1)
            add(other, 1)
            await eventually(lambda: one.alone and other.alone)
            assert (total(one), total(other)) == (8, 8)
            assert one.warnings() == (
                "Valkey does not answer: each process counts rate limits by itself",
            )
            began_s = time.monotonic()
            await one.first_read([use(one, "new")])
            assert time.monotonic() - began_s < FIRST_READ_S / 2, "nobody waits for the dead"
            server.start()
            add(one, 1)
            await eventually(lambda: not one.alone and not other.alone)
            await eventually(lambda: total(one) == total(other) == 10)
            assert one.warnings() == ()


async def test_a_valkey_that_hangs_holds_up_nobody() -> None:
    with valkey_server() as server:
        async with process(server) as one:
            await one.first_read([use(one)])
            server.freeze()
            began_s = time.monotonic()
            await one.first_read([use(one, "new")])
            assert time.monotonic() - began_s < FIRST_READ_S * 2
            await eventually(lambda: one.alone)
            server.thaw()
            await eventually(lambda: not one.alone)


async def test_many_counters_are_exchanged_in_bounded_batches(valkey: ValkeyServer) -> None:
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(process(valkey)) for _ in range(2)]
        names = [f"n{number}" for number in range(1_000)]
        for name in names:
            add(one, 2, name)
            add(other, 3, name)
        await eventually(lambda: all(total(one, name) == 5 for name in names))


@pytest.mark.parametrize("corrupt", [b"x", b"1:2:3", b"-5:99999999999999"])
async def test_what_somebody_else_wrote_there_is_passed_over(
    valkey: ValkeyServer, corrupt: bytes
) -> None:
    async with process(valkey) as one:
        add(one, 3)
        await eventually(lambda: bool(valkey.entries()))
        (key,) = valkey.entries()
        valkey.write(key, b"stranger", corrupt)
        add(one, 1)
        await eventually(lambda: use(one).unsaid == 0)
        assert total(one) == 4
        assert b"stranger" not in valkey.entries()[key]
