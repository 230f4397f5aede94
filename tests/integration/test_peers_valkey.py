"""No cache is asked about money: whatever Valkey says, the ledger decides (docs/peers.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from redis import Redis

from backend.catalog.limits import LimitBook
from schemas.catalog import Limits
from schemas.ledger import HoldSettled
from tests.conftest import Database
from tests.embedded_site import eventually
from tests.integration.audited_site import audited, readable
from tests.site import Customer, RunningSite, balances, chat, running_site
from tests.upstream import FakeUpstream
from tests.valkey import ValkeyServer, valkey_server

CALL_UPT = 1_500
FAR_MS = 99_999_999_999_999


def wiped(server: ValkeyServer, client: Redis) -> None:
    server.wipe()


def of_another_type(server: ValkeyServer, client: Redis) -> None:
    for key in client.scan_iter():
        client.delete(key)
        client.set(key, "-1000000")


def full_of_nonsense(server: ValkeyServer, client: Redis) -> None:
    for key in client.scan_iter():
        client.delete(key)
        client.hset(key, mapping={"a": f"-900000:{FAR_MS}", "b": "NaN", "c": "", "": "\x00\xff"})


def with_balances_of_a_stranger(server: ValkeyServer, client: Redis) -> None:
    """Under the names that such balances have elsewhere."""
    for name in ("user_quota:1", "balance:account:1", "account:1", "suanpan:account:1"):
        client.set(name, "-5")


def asleep(server: ValkeyServer, client: Redis) -> None:
    server.freeze()


def awake_again(server: ValkeyServer, client: Redis) -> None:
    server.thaw()


def gone(server: ValkeyServer, client: Redis) -> None:
    server.stop()


DAMAGES: tuple[Callable[[ValkeyServer, Redis], None], ...] = (
    wiped,
    of_another_type,
    full_of_nonsense,
    with_balances_of_a_stranger,
    asleep,
    awake_again,
    gone,
)


async def test_whatever_valkey_says_the_rich_are_served_the_poor_refused_and_charges_are_right(
    database: Database, tmp_path: Path
) -> None:
    with valkey_server() as server:
        client = Redis.from_url(server.url, socket_timeout=2)
        async with (
            FakeUpstream() as upstream,
            running_site(database, tmp_path, redis_url=server.url) as site,
        ):
            await site.serves(upstream.url)
            rich, poor = await site.customer("1000"), await site.customer("0.001")
            await counted(site, server, rich)
            for number, damage in enumerate(DAMAGES, 1):
                damage(server, client)
                replies = await asyncio.gather(
                    *(site.ask(rich.key, chat(stream=n % 2 == 0)) for n in range(5)),
                    site.ask(poor.key, chat()),
                )
                statuses = [reply.status for reply in replies]
                assert statuses == [200] * 5 + [402], damage.__name__
                await site.ended(rich, 1 + 5 * number)
                state = await site.account(rich)
                assert state.charged_upt == (1 + 5 * number) * CALL_UPT, damage.__name__
            events = await site.events(rich)
            charges = [event.amount_upt for event in events if isinstance(event, HoldSettled)]
            assert charges == [CALL_UPT] * (1 + 5 * len(DAMAGES))
            assert balances(events)[-1][1] == 0
            assert (await site.account(poor)).charged_upt == 0
        client.close()
    await readable(database.app_url)
    report = await audited(database.app_url)
    assert report.ok, report.first


async def counted(site: RunningSite, server: ValkeyServer, customer: Customer) -> None:
    """The account's calls are counted in Valkey, so that there is something to damage."""
    book = LimitBook(site.base.writer, site.base.pool)
    await book.set_limit("key", str(customer.key_id), Limits(requests_per_day=1_000))
    await site.refresh()
    assert (await site.ask(customer.key, chat())).status == 200
    await eventually(lambda: bool(server.entries()))


async def test_a_site_that_has_never_seen_its_valkey_charges_the_same(
    database: Database, tmp_path: Path
) -> None:
    async with (
        FakeUpstream() as upstream,
        running_site(database, tmp_path, redis_url="redis://127.0.0.1:1/0") as site,
    ):
        await site.serves(upstream.url)
        anna = await site.customer()
        assert (await site.ask(anna.key, chat(stream=True))).status == 200
        assert (await site.account(anna)).charged_upt == CALL_UPT
