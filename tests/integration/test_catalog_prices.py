"""Price versions with a time, groups and price lists against a real database."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from backend.catalog.price_list import read_list
from backend.catalog.price_lists import UNIT_MODELS_MAX, builtin_list
from backend.catalog.price_proposal import Proposal, read_proposal, write_proposal
from backend.journal.reader import read_stream
from schemas.catalog import ChannelSettings, PriceListAccepted
from schemas.errors import BadRequest, Conflict
from schemas.ids import pricelist_stream
from schemas.plans import Group, OfferedGroup
from schemas.prices import PPM, Free, PerCall, PerToken, PriceRef
from schemas.registry import decode
from tests.conftest import Database
from tests.integration.identity_site import Process, caught_up, process_of

FAR_US = 4_102_444_800_000_000
"""2100-01-01."""


def now_us() -> int:
    return time.time_ns() // 1_000


def rows_of(*models: str, cost: float = 1) -> bytes:
    rows = [
        {"name": model, "input_per_million_usd": cost, "output_per_million_usd": cost}
        for model in models
    ]
    head = {"as_of": "2026-11-20", "currency": "USD", "unit": "per 1,000,000 tokens"}
    return json.dumps({**head, "models": rows}).encode()


async def reviewed(site: Process, data: bytes, rate: str = "7") -> Proposal:
    prices = read_list(data, "list", rate, now_us())
    proposal = await site.catalog.price_lists.review(prices, (), now_us())
    return read_proposal(write_proposal(proposal))


async def test_a_future_price_takes_effect_by_itself_in_every_process(database: Database) -> None:
    async with process_of(database.app_url) as here, process_of(database.app_url) as there:
        await here.opening.add_channel(ChannelSettings("c", "openai", "http://h", ("m", "n")), "")
        await here.catalog.set_price("m", PerCall(5_000))
        begins_us = now_us() + 700_000
        assert await here.catalog.set_price("m", PerCall(9_000), begins_us) == PriceRef("m", 2)
        assert await here.catalog.set_price("n", PerCall(1_000), begins_us) == PriceRef("n", 1)
        await caught_up(there)
        assert there.channels.models() == ("m",)
        before, at = (there.channels.price_of("m", us) for us in (begins_us - 1, begins_us))
        assert before is not None
        assert at is not None
        assert (before.ref.version, before.price) == (1, PerCall(5_000))
        assert (at.ref.version, at.price) == (2, PerCall(9_000))
        assert there.channels.price_of("n", begins_us - 1) is None
        await asyncio.sleep(max(0, begins_us - now_us()) / 1_000_000 + 0.001)
        assert there.channels.models() == ("m", "n")


async def test_a_price_in_the_past_is_refused(database: Database) -> None:
    async with process_of(database.app_url) as site:
        with pytest.raises(BadRequest, match="in the past"):
            await site.catalog.set_price("m", Free(), now_us() - 1)
        assert await site.catalog.newest_price("m") is None


async def test_a_group_is_defined_anew_and_seen(database: Database) -> None:
    async with process_of(database.app_url) as site:
        assert await site.catalog.define_group("vip", Group(PPM // 2, ("m",))) == 1
        assert await site.catalog.define_group("vip", Group(PPM // 2, ("m",))) == 1
        assert await site.catalog.define_group("vip", Group(800_000)) == 2
        await caught_up(site)
        assert dict(site.channels.groups) == {"vip": OfferedGroup(Group(800_000), 2)}
        assert await site.catalog.list_groups() == dict(site.channels.groups)
        with pytest.raises(BadRequest):
            await site.catalog.define_group("vip", Group(-1))


async def test_nothing_is_set_by_a_review_and_all_of_it_by_its_acceptance(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        proposal = await reviewed(site, builtin_list(), "7.12")
        assert await site.catalog.newest_price("gpt-6.1-sol") is None
        done = await site.catalog.price_lists.accept(proposal, (), 0, "cli")
        assert done.models == tuple(entry.model for entry in proposal.models)
        again = await reviewed(site, builtin_list(), "7.12")
        assert (len(again.models), again.sets()) == (len(proposal.models), ())


async def test_a_reviewed_list_is_accepted_with_its_source_and_who_did_it(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        await site.catalog.set_price("b", PerToken(70_000, 70_000))
        await site.catalog.set_price("c", PerCall(5_000))
        proposal = await reviewed(site, rows_of("a", "b", "c"))
        done = await site.catalog.price_lists.accept(proposal, (), 0, "cli")
        assert (done.models, done.as_before) == (("a", "c"), ())
        assert await site.catalog.newest_price("c") == (
            PriceRef("c", 2),
            PerToken(70_000, 70_000),
        )
        first, second = await site.catalog.prices.versions("c")
        assert (first.fact.source, first.actor) == (None, None)
        assert second.fact.source is not None
        assert second.fact.source.list_name == "list 2026-11-20"
        assert (second.fact.source.points_per_unit, second.actor) == ("70", "cli")
        async with site.pool.connection() as connection:
            rows = await read_stream(connection, pricelist_stream("list"), 1)
        fact = decode(rows[0])
        assert isinstance(fact, PriceListAccepted)
        assert (fact.models, fact.currency, fact.actor) == (("a", "c"), "USD", "cli")
        assert fact.digest.hex() == proposal.list_digest


async def test_a_price_that_changed_after_the_review_is_not_overwritten(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        proposal = await reviewed(site, rows_of("a", "b"))
        await site.catalog.set_price("b", PerCall(5_000))
        with pytest.raises(Conflict, match="'b' was changed after the review"):
            await site.catalog.price_lists.accept(proposal, (), 0, "cli")
        assert await site.catalog.newest_price("a") is None
        done = await site.catalog.price_lists.accept(proposal, ("a",), 0, "cli")
        assert done.models == ("a",)


async def test_a_list_accepted_twice_at_once_sets_each_price_once(database: Database) -> None:
    async with process_of(database.app_url) as here, process_of(database.app_url) as there:
        proposal = await reviewed(here, rows_of("a", "b"))
        results = await asyncio.gather(
            *(site.catalog.price_lists.accept(proposal, (), 0, "cli") for site in (here, there)),
            return_exceptions=True,
        )
        assert not any(isinstance(result, BaseException) for result in results), results
        assert len(await here.catalog.prices.versions("a")) == 1
        assert len(await here.catalog.prices.versions("b")) == 1


async def test_a_large_list_lands_in_whole_units_and_can_be_taken_up_again(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        names = [f"model-{n:03d}" for n in range(UNIT_MODELS_MAX + 20)]
        proposal = await reviewed(site, rows_of(*names))
        await site.catalog.set_price(names[-1], PerCall(5_000))
        with pytest.raises(Conflict, match=f"{UNIT_MODELS_MAX} models were set before"):
            await site.catalog.price_lists.accept(proposal, (), 0, "cli")
        rest = await site.catalog.price_lists.accept(proposal, names[:-1], 0, "cli")
        assert rest.models == tuple(names[UNIT_MODELS_MAX:-1])
        assert len(rest.as_before) == UNIT_MODELS_MAX
        await caught_up(site)
        assert all(site.channels.price_of(name, now_us()) is not None for name in names)


async def test_a_list_may_begin_later(database: Database) -> None:
    async with process_of(database.app_url) as site:
        await site.catalog.set_price("a", PerCall(5_000))
        proposal = await reviewed(site, rows_of("a"))
        await site.catalog.price_lists.accept(proposal, (), FAR_US, "cli")
        versions = await site.catalog.prices.versions("a")
        assert [one.begins_us for one in versions][1:] == [FAR_US]
        await caught_up(site)
        priced = site.channels.price_of("a", now_us())
        assert priced is not None
        assert priced.price == PerCall(5_000)
