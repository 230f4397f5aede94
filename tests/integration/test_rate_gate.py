"""The gate of the relay: what it lets in, what it says at a limit, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from backend.catalog.limit import Limited
from backend.catalog.limit_view import LimitView
from backend.http.relay.gate import Admission, RateGate
from backend.identity.key_view import KeyEntry
from backend.kit.clock import SystemRandomness
from backend.kit.rates import DAY
from backend.kit.shared_rates import SharedRates
from schemas.catalog import Limits
from schemas.chat import ChatRequest, parse_chat_request
from schemas.errors import RateLimited
from schemas.ids import KeyId, PersonId, StreamName
from schemas.usage import Usage
from tests.embedded_site import eventually
from tests.valkey import ValkeyServer, valkey_server

NOON_US = 20_000 * DAY.length_us + DAY.length_us // 2
SECOND_US = 1_000_000


class StillClock:
    """Wall time stands still until it is moved; durations are real."""

    def __init__(self) -> None:
        self.us = NOON_US

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class Ground(RateGate):
    """A gate with its limits, its clock and its exchange."""

    def __init__(self, limits: LimitView, rates: SharedRates, clock: StillClock) -> None:
        super().__init__(limits, rates, clock)
        self.limits, self.rates, self.clock = limits, rates, clock

    def limit(self, place: str, **limits: int) -> None:
        self.limits.put(f"limit:{place}", 1, Limited(Limits(**limits)))

    async def admitted(self, entry: KeyEntry, request: ChatRequest) -> Admission:
        admission = await self.admit(entry, request)
        assert admission is not None
        return admission

    async def refused(self, entry: KeyEntry, request: ChatRequest) -> RateLimited:
        with pytest.raises(RateLimited) as caught:
            await self.admit(entry, request)
        return caught.value


@asynccontextmanager
async def gate_on(server: ValkeyServer) -> AsyncGenerator[Ground]:
    client, clock = server.client(), StillClock()
    rates = SharedRates(client, clock, SystemRandomness())
    rates.start()
    yield Ground(LimitView(), rates, clock)
    await rates.stop()
    await client.close()


@pytest.fixture
async def gate(valkey: ValkeyServer) -> AsyncIterator[Ground]:
    async with gate_on(valkey) as ground:
        yield ground


def caller(key: int = 7, person: int = 1, group: str = "") -> KeyEntry:
    account = StreamName(f"account:{person}")
    return KeyEntry(
        KeyId(key), PersonId(person), account, frozenset(), None, revoked=False, group=group
    )


def request(text: str = "Hello", model: str = "m", **more: Any) -> ChatRequest:
    messages = more.pop("messages", [{"role": "user", "content": text}])
    return parse_chat_request(json.dumps({"model": model, "messages": messages, **more}).encode())


def headers(admission: Admission) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in admission.headers()}


async def test_without_a_limit_nothing_is_counted_and_nothing_is_said(gate: Ground) -> None:
    assert await gate.admit(caller(), request()) is None
    gate.limit("key:9", requests_per_minute=1)
    admission = await gate.admitted(caller(), request())
    assert admission.headers() == []
    assert len(gate.rates.counters) == 0


@pytest.mark.parametrize(
    ("place", "whom"),
    [
        ("key:7", "this key"),
        ("person:1", "this account"),
        ("group:pro", "the group `pro`"),
        ("model:m", "the model `m`"),
        ("model:m:v1", "the model `m:v1`"),
    ],
)
async def test_the_refusal_says_which_limit_and_when_to_come_back(
    gate: Ground, place: str, whom: str
) -> None:
    gate.limit(place, requests_per_minute=3)
    model = "m:v1" if place.endswith("v1") else "m"
    entry = caller(group="pro")
    gate.clock.us += 48 * SECOND_US
    for left in (2, 1, 0):
        admission = await gate.admitted(entry, request(model=model))
        assert headers(admission) == {
            "ratelimit-limit": 3,
            "ratelimit-remaining": left,
            "ratelimit-reset": 12,
        }
    error = await gate.refused(entry, request(model=model))
    assert (
        error.sentence == f"Limit of 3 requests per minute for {whom} reached; try again in 12 s."
    )
    assert (error.status, error.code, error.kind) == (429, "rate_limit_exceeded", "requests")
    assert (error.retry_after_s, error.limit, error.retriable) == (12, 3, True)
    gate.clock.us += 12 * SECOND_US
    await gate.admitted(entry, request(model=model))


async def test_who_is_not_limited_is_not_refused_with_the_others(gate: Ground) -> None:
    gate.limit("key:7", requests_per_minute=1)
    await gate.admitted(caller(7), request())
    await gate.refused(caller(7), request())
    for _ in range(5):
        await gate.admitted(caller(8), request())


async def test_a_refused_call_counts_nowhere(gate: Ground) -> None:
    gate.limit("key:7", requests_per_day=100)
    gate.limit("model:m", requests_per_minute=1)
    await gate.admitted(caller(), request())
    for _ in range(5):
        await gate.refused(caller(), request())
    assert gate.rates.counters.use("key:7:requests:day", DAY, gate.clock.us).own == 1


async def test_a_days_limit_ends_at_midnight_utc(gate: Ground) -> None:
    gate.limit("person:1", requests_per_day=1)
    await gate.admitted(caller(), request())
    error = await gate.refused(caller(), request())
    assert "per day for this account reached; try again in 43200 s." in error.sentence
    gate.clock.us += 12 * 3600 * SECOND_US
    await gate.admitted(caller(), request())


async def test_of_two_limits_that_are_reached_the_longer_wait_is_told(gate: Ground) -> None:
    gate.limit("key:7", requests_per_minute=1, requests_per_day=1)
    await gate.admitted(caller(), request())
    assert "per day" in (await gate.refused(caller(), request())).sentence


async def test_the_headers_are_those_of_the_tightest_limit(gate: Ground) -> None:
    gate.limit("key:7", requests_per_minute=4, requests_per_day=1000)
    gate.limit("model:m", requests_per_minute=500)
    assert headers(await gate.admitted(caller(), request()))["ratelimit-limit"] == 4
    gate.clock.us += 60 * SECOND_US
    gate.limit("key:7", requests_per_minute=4, requests_per_day=2)
    assert headers(await gate.admitted(caller(), request()))["ratelimit-limit"] == 2


# Tokens


async def test_tokens_are_reserved_by_estimate_and_corrected_by_what_was_used(
    gate: Ground,
) -> None:
    gate.limit("key:7", tokens_per_minute=1_000)
    first = await gate.admitted(caller(), request("x" * 2_000))
    reserved = 1_000 - headers(first)["ratelimit-remaining"]
    assert 600 < reserved < 800
    error = await gate.refused(caller(), request("x" * 2_000))
    assert error.kind == "tokens"
    assert error.sentence.startswith("Limit of 1000 tokens per minute for this key reached;")
    first.used(Usage(input=100, cached_input=20, output=80, reasoning=30))
    first.end()
    assert headers(first)["ratelimit-remaining"] == 800, "reasoning lies inside the output"
    await gate.admitted(caller(), request("x" * 2_000))


async def test_what_an_answer_used_beyond_its_reservation_counts_against_the_next(
    gate: Ground,
) -> None:
    gate.limit("key:7", tokens_per_minute=1_000)
    first = await gate.admitted(caller(), request())
    gate.clock.us += 60 * SECOND_US
    first.used(Usage(input=10, output=5_000))
    first.end()
    await gate.refused(caller(), request())
    gate.clock.us += 60 * SECOND_US
    await gate.admitted(caller(), request())


async def test_a_call_that_failed_used_a_request_and_no_tokens(gate: Ground) -> None:
    gate.limit("key:7", tokens_per_minute=1_000, requests_per_minute=2)
    for _ in range(2):
        failed = await gate.admitted(caller(), request("x" * 2_000))
        failed.end()
    error = await gate.refused(caller(), request("x" * 2_000))
    assert error.kind == "requests"


async def test_a_request_larger_than_the_limit_is_told_that_waiting_does_not_help(
    gate: Ground,
) -> None:
    gate.limit("key:7", tokens_per_day=100)
    error = await gate.refused(caller(), request("x" * 3_000))
    assert error.sentence.startswith("This request counts as 1")
    assert "more than the limit of 100 tokens per day for this key" in error.sentence
    assert (error.retry_after_s, error.retriable) == (None, False)


async def test_a_picture_is_looked_at_before_it_is_found_too_large(gate: Ground) -> None:
    """The bound that holds use is far above what a picture counts as."""
    gate.limit("key:7", tokens_per_minute=2_000)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 30_000}}
    messages = [{"role": "user", "content": [picture]}]
    assert request(messages=messages).input_bound > 40_000
    await gate.admitted(caller(), request(messages=messages))


# What is open


@pytest.mark.parametrize("place", ["group:pro", "model:m"])
async def test_only_so_many_are_under_way_at_once(gate: Ground, place: str) -> None:
    gate.limit(place, concurrency=2)
    first = await gate.admitted(caller(1, 1, "pro"), request())
    await gate.admitted(caller(2, 2, "pro"), request())
    error = await gate.refused(caller(3, 3, "pro"), request())
    assert error.sentence.startswith("Limit of 2 requests at once for the ")
    assert error.retry_after_s == 1
    first.end()
    await gate.admitted(caller(3, 3, "pro"), request())


async def test_concurrency_of_keys_and_people_is_the_ledgers_to_decide(gate: Ground) -> None:
    gate.limit("key:7", concurrency=1)
    gate.limit("person:1", concurrency=2)
    for _ in range(3):
        assert await gate.admit(caller(), request()) is None
    assert gate.terms(caller()).concurrency == 1
    assert gate.terms(caller(8)).concurrency is None
    assert (gate.at_once(caller()), gate.at_once(caller(7, 2))) == (2, None)


async def test_a_limit_that_is_taken_away_binds_no_more(gate: Ground) -> None:
    gate.limit("key:7", requests_per_minute=1, concurrency=1)
    await gate.admitted(caller(), request())
    await gate.refused(caller(), request())
    gate.limit("key:7")
    assert await gate.admit(caller(), request()) is None
    assert gate.terms(caller()).concurrency is None


# Groups


async def test_an_accounts_group_is_known_from_its_last_hold(gate: Ground) -> None:
    gate.limit("group:pro", requests_per_minute=1)
    (await gate.admitted(caller(), request())).held("pro")
    await gate.admitted(caller(), request())
    assert "the group `pro`" in (await gate.refused(caller(), request())).sentence
    await gate.admitted(caller(8, 2), request())
    gate.learn("account:1", "basic")
    await gate.admitted(caller(), request())


async def test_a_key_bound_to_a_group_says_nothing_of_its_accounts_own(gate: Ground) -> None:
    gate.limit("group:pro", requests_per_minute=1)
    bound = await gate.admitted(caller(7, 1, "pro"), request())
    bound.held("pro")
    await gate.refused(caller(7, 1, "pro"), request())
    await gate.admitted(caller(8, 1), request())


# Several processes


async def test_two_processes_admit_the_limit_and_no_more_than_their_last_exchange_missed(
    valkey: ValkeyServer,
) -> None:
    limit, admitted = 100, [0, 0]
    async with AsyncExitStack() as stack:
        gates = [await stack.enter_async_context(gate_on(valkey)) for _ in range(2)]
        for one in gates:
            one.limit("model:m", requests_per_minute=limit)

        async def calls(number: int) -> None:
            refusals = 0
            while refusals < 20:
                try:
                    await gates[number].admit(caller(number), request())
                    admitted[number] += 1
                except RateLimited:
                    refusals += 1
                await asyncio.sleep(0.005)

        await asyncio.gather(calls(0), calls(1))
    # A tenth of the limit is said at once; what is admitted meanwhile is the rest of the slack.
    assert limit <= sum(admitted) <= limit + limit // 10 + 20
    assert min(admitted) > 0


async def test_calls_open_in_another_process_count(valkey: ValkeyServer) -> None:
    async with gate_on(valkey) as one, gate_on(valkey) as other:
        for gate in (one, other):
            gate.limit("model:m", concurrency=3)
        open_calls = [await one.admitted(caller(), request()) for _ in range(3)]
        await eventually(lambda: not any(c.unsaid for c in one.rates.counters.active(NOON_US)))
        await other.refused(caller(), request())
        for call in open_calls:
            call.end()
        counter = other.rates.counters.use("model:m:open:now", None, NOON_US)
        await eventually(lambda: counter.total(NOON_US) == 0)
        await other.admitted(caller(), request())


async def test_the_relay_goes_on_without_valkey_and_counts_by_itself() -> None:
    with valkey_server() as server:
        async with gate_on(server) as gate:
            gate.limit("key:7", requests_per_minute=3)
            await gate.admitted(caller(), request())
            server.stop()
            await gate.admitted(caller(), request())
            await gate.admitted(caller(), request())
            await gate.refused(caller(), request())
            await eventually(lambda: gate.rates.alone)
            await gate.refused(caller(), request())
            gate.limit("key:8", requests_per_minute=1)
            await gate.admitted(caller(8), request())
