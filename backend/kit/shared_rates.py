"""Tells other processes what this one counted, through Valkey, and reads what they did.

Off the path of any request: without Valkey each process counts for itself, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import structlog

from backend.kit.clock import Clock, Randomness
from backend.kit.rates import Counter, Counters
from backend.kit.tasks import ended, vital
from backend.kit.valkey import Script, Valkey, ValkeyErrors

EXCHANGE_EVERY_S: Final = 0.25
EXCHANGE_GAP_S: Final = 0.02
"""Where somebody hurries, exchanges are still so far apart."""
FIRST_READ_S: Final = 0.1
"""How long a request waits for the count of a name that this process has never heard of."""
BACKOFF_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0)
BATCH_MAX: Final = 200
CLOSE_TIMEOUT_S: Final = 1.0

EXCHANGE: Final = Script("""
-- Per key: a hash of field -> "count:end", one field per counter of a process. A process only ever
-- writes what it counted in all, so saying it twice, or again after a wipe, changes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local totals = {}
for i, key in ipairs(KEYS) do
  local field, own, lives = ARGV[i * 3 - 2], ARGV[i * 3 - 1], tonumber(ARGV[i * 3])
  redis.call('HSET', key, field, own .. ':' .. string.format('%.0f', now + lives))
  redis.call('PEXPIRE', key, lives)
  local total, all = 0, redis.call('HGETALL', key)
  for j = 1, #all, 2 do
    if all[j] ~= field then
      local count, ends = string.match(all[j + 1], '^(%d+):(%d+)$')
      if count and tonumber(ends) > now then
        total = total + tonumber(count)
      else
        redis.call('HDEL', key, all[j])
      end
    end
  end
  totals[i] = total
end
return totals
""")

_log = structlog.get_logger("kit.rates")


class SharedRates:
    """The counters of a process and their exchange with others. `start`, and `stop` at the end."""

    def __init__(self, valkey: Valkey, clock: Clock, randomness: Randomness) -> None:
        self._valkey: Final = valkey
        self._clock: Final = clock
        self._randomness: Final = randomness
        self.counters: Final = Counters(f"{randomness.bits(64):016x}")
        self._wake: Final = asyncio.Event()
        self._passed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._exchanged_s = -EXCHANGE_GAP_S
        self.failures = 0
        """Exchanges that failed in a row."""

    @property
    def alone(self) -> bool:
        """Valkey did not answer: what others count is not known."""
        return self.failures > 0

    def warnings(self) -> tuple[str, ...]:
        """For an operator; empty while all is well."""
        if not self.alone:
            return ()
        return ("Valkey does not answer: each process counts rate limits by itself",)

    def start(self) -> None:
        self._task = vital(self._run(), "shared rates")

    async def stop(self) -> None:
        """Says the last counts, so that the next start finds them."""
        await ended(self._task)
        if self._task is not None and not self.alone:
            with contextlib.suppress(*ValkeyErrors):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._exchange()

    def hurry(self) -> None:
        """Much was counted, or something new: others should hear of it soon."""
        self._wake.set()

    async def first_read(self, counters: Sequence[Counter]) -> None:
        """Waits a moment until these counts have been read, all who wait together; never raises.

        So a count survives a restart of its process. Where Valkey is down nobody waits.
        """
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_READ_S):
                while not self.alone and not all(counter.known for counter in counters):
                    await self._passed.wait()

    async def _run(self) -> None:
        while True:
            await self._pause()
            try:
                await self._exchange()
            except ValkeyErrors as error:
                self._failed(error)
            else:
                self._succeeded()
            passed, self._passed = self._passed, asyncio.Event()
            passed.set()

    async def _pause(self) -> None:
        if self.alone:
            await asyncio.sleep(self._around(BACKOFF_S[min(self.failures, len(BACKOFF_S)) - 1]))
            return
        idle = not self.counters.active(self._clock.now_us())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if idle else self._around(EXCHANGE_EVERY_S)):
                await self._wake.wait()
        await asyncio.sleep(self._exchanged_s + EXCHANGE_GAP_S - self._clock.monotonic_s())
        self._wake.clear()

    async def _exchange(self) -> None:
        """Raises ValkeyErrors."""
        counters = self.counters.active(self._clock.now_us())
        if not counters:
            await self._valkey.ping()
        for first in range(0, len(counters), BATCH_MAX):
            await self._exchange_batch(counters[first : first + BATCH_MAX])
        self._exchanged_s = self._clock.monotonic_s()

    async def _exchange_batch(self, batch: Sequence[Counter]) -> None:
        now_us = self._clock.now_us()
        keys: list[str] = []
        arguments: list[str | int] = []
        said: list[tuple[int, int]] = []
        for counter in batch:
            lives_ms = counter.lives_us(now_us) // 1000
            keys.append(f"rates:{counter.name}:{counter.window}")
            arguments += (counter.field, counter.own, lives_ms)
            said.append((counter.own, counter.window))
        totals = await self._valkey.run(EXCHANGE, keys, arguments)
        now_us = self._clock.now_us()
        for counter, (own, window), others in zip(batch, said, totals, strict=True):
            counter.heard(others, window, own, now_us)

    def _failed(self, error: BaseException) -> None:
        if not self.alone:
            _log.warning("rates are counted alone", error=type(error).__name__)
        self.failures += 1

    def _succeeded(self) -> None:
        if self.alone:
            _log.info("rates are shared again", failures=self.failures)
        self.failures = 0

    def _around(self, seconds: float) -> float:
        """Jitter, so that processes do not all come at once."""
        return seconds * (0.75 + self._randomness.bits(16) / 2**17)
