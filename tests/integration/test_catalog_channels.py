"""Channels, prices and the empty site against a real database."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path

import pytest

from backend.catalog.service import disabling
from backend.identity.service import revocation
from backend.journal.commands import Command
from backend.kit.secrets import SealBroken
from backend.opening import DEMO_MODEL, TRIAL_FILE
from schemas.catalog import ChannelSettings
from schemas.errors import BadRequest, Conflict, NotFound
from schemas.ids import ChannelId
from schemas.prices import Free, PerCall, PerToken, PriceRef
from tests.conftest import Database
from tests.integration.identity_site import caught_up, process_of

ONE = ChannelSettings("one", "openai", "https://one.example.com/v1/", ("gpt", "o3"), priority=1)
TWO = ChannelSettings(
    "two", "openai", "http://127.0.0.1:9", ("gpt",), priority=2, mapping=(("gpt", "gpt-x"),)
)
PRICE = PerToken(10, 20)


async def test_a_model_is_available_once_it_has_a_channel_and_a_price(database: Database) -> None:
    async with process_of(database.app_url) as site:
        added = await site.opening.add_channel(ONE, "sk-one")
        await caught_up(site)
        assert site.channels.models() == ()
        await site.catalog.set_price("gpt", PRICE)
        await site.catalog.set_price("priced only", PRICE)
        await caught_up(site)
        assert site.channels.models() == ("gpt",)
        assert site.channels.available("gpt")
        assert not site.channels.available("o3")
        assert not site.channels.available("priced only")
        priced = site.channels.price_of("gpt", time.time_ns() // 1_000)
        assert priced is not None
        assert (priced.price, priced.ref) == (PRICE, PriceRef("gpt", 1))
        await site.catalog.disable_channel(added.channel, "broken")
        await caught_up(site)
        assert site.channels.models() == ()
        await site.catalog.enable_channel(added.channel)
        await caught_up(site)
        assert site.channels.models() == ("gpt",)


async def test_the_view_gives_ready_channels_by_priority(database: Database) -> None:
    async with process_of(database.app_url) as site:
        one = await site.opening.add_channel(ONE, "sk-one")
        two = await site.opening.add_channel(TWO, "")
        await caught_up(site)
        entries = site.channels.channels_for("gpt")
        assert [entry.channel for entry in entries] == [two.channel, one.channel]
        assert entries[0].upstream_model("gpt") == "gpt-x"
        assert (entries[0].secret, entries[1].secret) == ("", "sk-one")
        assert entries[1].base_url == "https://one.example.com/v1"
        assert "sk-one" not in repr(entries)
        assert [entry.channel for entry in site.channels.channels_for("o3")] == [one.channel]
        assert site.channels.channels_for("none") == ()


async def test_a_changed_channel_keeps_its_secret_unless_a_new_one_is_given(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        added = await site.opening.add_channel(ONE, "sk-old")

        async def secret_in_view() -> str:
            await caught_up(site)
            entry = site.channels.channel(added.channel)
            assert entry is not None
            return entry.secret

        assert await site.catalog.change_channel(added.channel, TWO, None) == 2
        assert await secret_in_view() == "sk-old"
        assert await site.catalog.change_channel(added.channel, TWO, None) == 2
        assert await site.catalog.change_channel(added.channel, TWO, "sk-new") == 3
        assert await secret_in_view() == "sk-new"
        assert await site.catalog.change_channel(added.channel, TWO, "") == 4
        assert await secret_in_view() == ""
        with pytest.raises(NotFound):
            await site.catalog.change_channel(ChannelId(999), TWO, None)


async def test_many_changes_at_once_all_land_and_open(database: Database) -> None:
    async with process_of(database.app_url) as here, process_of(database.app_url) as there:
        added = await here.opening.add_channel(ONE, "sk-0")
        versions = await asyncio.gather(
            *(
                site.catalog.change_channel(added.channel, ONE, f"sk-{i}")
                for i in range(10)
                for site in (here, there)
            )
        )
        assert sorted(versions) == list(range(2, 22))
        await caught_up(there)
        entry = there.channels.channel(added.channel)
        assert entry is not None
        assert entry.secret.startswith("sk-")


async def test_a_sealed_secret_moved_to_another_channel_does_not_open(database: Database) -> None:
    async with process_of(database.app_url) as site:
        await site.opening.add_channel(ONE, "sk-one")
        await site.opening.add_channel(TWO, "sk-two")
        one, two = await site.catalog.list_channels()
        stolen = type(one)(two.channel, two.version, one.state)
        with pytest.raises(SealBroken):
            site.catalog.secret_of(stolen)
        site.channels.put(f"channel:{two.channel}", 2, one.state)
        assert site.channels.channel(two.channel) is None


async def test_price_versions_are_immutable_and_the_same_price_is_no_new_one(
    database: Database,
) -> None:
    async with process_of(database.app_url) as site:
        prices = (PerToken(10, 20), PerCall(5), Free(), PerToken(10, 20, 1))
        for version, price in enumerate(prices, 1):
            assert await site.catalog.set_price("gpt:4", price) == PriceRef("gpt:4", version)
            assert await site.catalog.set_price("gpt:4", price) == PriceRef("gpt:4", version)
        for version, price in enumerate(prices, 1):
            assert await site.catalog.prices.price_at("gpt:4", version) == price
            assert await site.catalog.prices.price_at("gpt:4", version) == price
        for version in (0, len(prices) + 1):
            with pytest.raises(NotFound):
                await site.catalog.prices.price_at("gpt:4", version)
        await caught_up(site)
        priced = site.channels.price_of("gpt:4", time.time_ns() // 1_000)
        assert priced is not None
        assert priced.ref.version == len(prices)
        with pytest.raises(BadRequest, match="free"):
            await site.catalog.set_price("gpt:4", PerCall(0))


async def test_two_channels_do_not_get_one_name(database: Database) -> None:
    async with process_of(database.app_url) as site:
        await site.opening.add_channel(ONE, "")
        with pytest.raises(Conflict):
            await site.opening.add_channel(ONE, "")
        assert (await site.catalog.find_channel("one")).state.settings.models == ("gpt", "o3")
        with pytest.raises(NotFound):
            await site.catalog.find_channel("three")


async def test_an_empty_site_opens_once_with_a_key_that_works(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as one, process_of(database.app_url) as two:
        opened = await asyncio.gather(
            *(site.opening.open_empty_site(tmp_path / "data") for site in (one, two, one))
        )
        assert sorted(opened) == [False, False, True]
        await caught_up(one)
        assert one.channels.models() == (DEMO_MODEL,)
        assert len(await one.catalog.list_channels()) == 1
        assert len(one.keys) == 1
        assert one.keys.find((tmp_path / "data" / TRIAL_FILE).read_text().strip()) is not None
        assert await one.identity.find("trial") is not None
        assert not await one.opening.open_empty_site(tmp_path / "data")


async def test_the_trial_key_lies_in_a_private_file(database: Database, tmp_path: Path) -> None:
    async with process_of(database.app_url) as site:
        assert await site.opening.open_empty_site(tmp_path)
        file = tmp_path / TRIAL_FILE
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        await caught_up(site)
        entry = site.keys.find(file.read_text().strip())
        assert entry is not None
        assert entry.person == await site.identity.find("trial")
        assert entry.usable(time.time_ns() // 1000)
        assert entry.allows(DEMO_MODEL)
        assert not entry.allows("gpt")


async def test_a_start_that_ended_before_the_trial_was_recorded_is_repeated(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        kept = "sk-" + "a1B2" * 10 + "xyz"
        (tmp_path / TRIAL_FILE).write_text(kept + "\n")
        assert await site.opening.open_empty_site(tmp_path)
        assert (tmp_path / TRIAL_FILE).read_text().strip() == kept
        await caught_up(site)
        assert site.keys.find(kept) is not None


async def test_the_first_real_channel_ends_demo_and_trial_in_one_unit(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        await site.opening.open_empty_site(tmp_path)
        key = (tmp_path / TRIAL_FILE).read_text().strip()
        added = await asyncio.gather(
            site.opening.add_channel(ONE, "sk-one"), site.opening.add_channel(TWO, "sk-two")
        )
        assert any(answer.ended_trial for answer in added)
        await caught_up(site)
        entry = site.keys.find(key)
        assert entry is not None
        assert entry.revoked
        assert site.channels.channels_for(DEMO_MODEL) == ()
        assert not await site.opening.open_empty_site(tmp_path)
        third = ChannelSettings("three", "openai", "http://127.0.0.1:9", ("x",))
        assert not (await site.opening.add_channel(third, "")).ended_trial


async def test_ending_what_has_ended_does_not_stop_a_new_channel(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        await site.opening.open_empty_site(tmp_path)
        demo = (await site.catalog.list_channels())[0].channel
        (key,) = [key async for key, _ in site.identity.list_keys()]
        parts = (disabling(demo, "by hand"), revocation(key, "cli"))
        adding = asyncio.create_task(site.opening.add_channel(ONE, "sk-one"))
        await asyncio.gather(
            *(
                site.writer.submit(Command(site.writer.new_id(), part.streams, part.decide))
                for part in parts
            )
        )
        added = await adding
        await caught_up(site)
        assert site.channels.channel(added.channel) is not None
        assert site.channels.channel(demo) is None


async def test_a_person_called_trial_keeps_the_name_and_the_demo_model_comes(
    database: Database, tmp_path: Path
) -> None:
    async with process_of(database.app_url) as site:
        real = (await site.opening.open_person("Trial", "a password")).person
        assert await site.opening.open_empty_site(tmp_path)
        await caught_up(site)
        assert site.channels.models() == (DEMO_MODEL,)
        assert await site.identity.find("trial") == real
        assert len(site.keys) == 0
        assert not (tmp_path / TRIAL_FILE).exists()
