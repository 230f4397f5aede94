"""The catalogue's door: channels, prices, groups. Decisions are in `decide`, rules in `checks`."""

from __future__ import annotations

from typing import Final

import msgspec

from backend.catalog.channel import CHANNEL, Channel
from backend.catalog.checks import (
    check_channel,
    check_group,
    check_group_name,
    check_secret_text,
)
from backend.catalog.decide import (
    NoSuchChannel,
    NothingToChange,
    PriceInThePast,
    SealAt,
    decide_add_channel,
    decide_change_channel,
    decide_define_group,
    decide_disable_channel,
    decide_enable_channel,
    decide_set_price,
)
from backend.catalog.group import GROUP
from backend.catalog.price import PRICE
from backend.catalog.price_checks import check_priced_model
from backend.catalog.price_history import PriceHistory
from backend.catalog.price_lists import PriceLists, price_refusal
from backend.journal.commands import AlreadyDone, Command, Landed, Refused
from backend.journal.entity_ids import next_entity_id
from backend.journal.fold import Folds
from backend.journal.reader import find_command
from backend.journal.units import Part
from backend.journal.view import load_states, states_of_kind
from backend.journal.writer import Writer
from backend.kit.clock import Randomness
from backend.kit.postgres import Pool
from backend.kit.secrets import NONCE_BYTES, SiteSecret, aad_of
from schemas.catalog import ChannelAdded, ChannelSettings, PriceSet
from schemas.errors import BadRequest, Conflict, NotFound, SuanpanError
from schemas.ids import ChannelId, channel_stream, group_stream, id_of, price_stream
from schemas.plans import Group, OfferedGroup
from schemas.prices import Price, PriceRef

CATALOG_FOLDS: Final = Folds([CHANNEL, PRICE, GROUP])


class ChannelState(msgspec.Struct, frozen=True):
    """A channel as the log has it now."""

    channel: ChannelId
    version: int
    state: Channel


class NewChannel(msgspec.Struct, frozen=True):
    """A channel about to be added, as part of a unit."""

    channel: ChannelId
    part: Part


class Catalog:
    """One per process. Raises Unavailable or psycopg errors while Postgres does not answer."""

    def __init__(
        self, writer: Writer, pool: Pool, secret: SiteSecret, randomness: Randomness
    ) -> None:
        self._writer: Final = writer
        self._pool: Final = pool
        self._secret: Final = secret
        self._randomness: Final = randomness
        self.prices: Final = PriceHistory(pool)
        self.price_lists: Final = PriceLists(writer, pool)

    async def prepare_channel(self, settings: ChannelSettings, secret: str) -> NewChannel:
        """Checks and seals a new channel; nothing is recorded yet. Raises BadRequest."""
        settings = check_channel(settings)
        secret = check_secret_text(secret)
        async with self._pool.connection() as connection:
            channel = ChannelId(await next_entity_id(connection))
        stream = channel_stream(channel)
        sealed = self._seal_at(stream, secret)(1) if secret else b""
        added = ChannelAdded(settings, sealed)
        return NewChannel(
            channel,
            Part((stream,), lambda standings, at_us: decide_add_channel(standings[0], added)),
        )

    async def change_channel(
        self, channel: ChannelId, settings: ChannelSettings, secret: str | None
    ) -> int:
        """New settings, and a new secret unless None; the version. Raises BadRequest, NotFound."""
        settings = check_channel(settings)
        stream = channel_stream(channel)
        seal_at = None if secret is None else self._seal_at(stream, check_secret_text(secret))
        return await self._record(
            Part(
                (stream,),
                lambda standings, at_us: decide_change_channel(standings[0], settings, seal_at),
            )
        )

    async def enable_channel(self, channel: ChannelId) -> int:
        """Returns the version that says so, new or old. Raises NotFound."""
        return await self._record(
            Part(
                (channel_stream(channel),),
                lambda standings, at_us: decide_enable_channel(standings[0]),
            )
        )

    async def disable_channel(self, channel: ChannelId, reason: str) -> int:
        """Returns the version that says so, new or old. Raises NotFound."""
        return await self._record(disabling(channel, reason))

    async def set_price(self, model: str, price: Price, effective_us: int = 0) -> PriceRef:
        """The version that holds this price: a new one, or the newest if it says the same.

        It counts at `effective_us` (0: at once) and ends older versions that would count later.
        Raises BadRequest.
        """
        part = self.price_part(model, price, effective_us)
        return PriceRef(model, await self._record(part))

    def price_part(self, model: str, price: Price, effective_us: int = 0) -> Part:
        """A new price, as part of a unit. Raises BadRequest."""
        wanted = PriceSet(check_priced_model(model, price), effective_us)
        return Part(
            (price_stream(model),),
            lambda standings, at_us: decide_set_price(standings[0], wanted, at_us),
        )

    async def define_group(self, name: str, group: Group) -> int:
        """Returns the version that says so, new or old. Raises BadRequest."""
        stream = group_stream(check_group_name(name))
        wanted = check_group(group)
        return await self._record(
            Part((stream,), lambda standings, at_us: decide_define_group(standings[0], wanted))
        )

    async def list_groups(self) -> dict[str, OfferedGroup]:
        """Every group that was ever defined, by name."""
        async with self._pool.connection() as connection:
            return {
                id_of(stream): OfferedGroup(state.group, version)
                async for stream, version, state in states_of_kind(
                    connection, CATALOG_FOLDS, GROUP.kind
                )
            }

    async def list_channels(self) -> list[ChannelState]:
        """Every channel by id, disabled ones too."""
        async with self._pool.connection() as connection:
            found = [
                ChannelState(ChannelId(int(id_of(stream))), version, state)
                async for stream, version, state in states_of_kind(
                    connection, CATALOG_FOLDS, CHANNEL.kind
                )
            ]
        return sorted(found, key=lambda entry: entry.channel)

    async def find_channel(self, name_or_id: str) -> ChannelState:
        """A channel by number or name. Raises NotFound; Conflict where two have the name."""
        channels = await self.list_channels()
        found = [
            entry
            for entry in channels
            if str(entry.channel) == name_or_id or entry.state.settings.name == name_or_id
        ]
        if not found:
            raise NotFound(f"There is no channel {name_or_id!r}.")
        if len(found) > 1:
            ids = ", ".join(str(entry.channel) for entry in found)
            raise Conflict(f"Channels {ids} have this name; say which by number.")
        return found[0]

    async def newest_price(self, model: str) -> tuple[PriceRef, Price] | None:
        """The newest price of a model, begun or not, as the log says; None where there is none."""
        stream = price_stream(model)
        async with self._pool.connection() as connection:
            found = await load_states(connection, CATALOG_FOLDS, (stream,))
        if stream not in found or found[stream][1].price is None:
            return None
        return PriceRef(model, found[stream][0]), found[stream][1].price

    def secret_of(self, entry: ChannelState) -> str:
        """The clear secret of a channel, for a call to it. Raises SealBroken."""
        if not entry.state.secret_sealed:
            return ""
        aad = aad_of(channel_stream(entry.channel), entry.state.secret_version)
        return self._secret.open(entry.state.secret_sealed, aad).decode()

    def _seal_at(self, stream: str, secret: str) -> SealAt:
        """A decision is taken again when it loses: each time with a nonce of its own."""
        return lambda version: self._secret.seal(
            secret.encode(), aad_of(stream, version), self._randomness.bytes(NONCE_BYTES)
        )

    async def _record(self, part: Part) -> int:
        """The version of the first stream that says so, recorded now or before."""
        command = Command(self._writer.new_id(), part.streams, part.decide)
        match await self._writer.submit(command):
            case Landed():
                # Commands that land together share what the outcome says: the log is exact.
                async with self._pool.connection() as connection:
                    found = await find_command(connection, command.command_id)
                assert found is not None, "it landed a moment ago"
                return found[1][-1].version
            case Refused(NothingToChange(version)):
                return version
            case Refused(reason):
                raise catalog_refusal(reason) or Conflict("This cannot be changed so.")
            case AlreadyDone():
                raise Conflict("This was recorded before.")


def disabling(channel: ChannelId, reason: str) -> Part:
    """The end of a channel's use, as part of a unit."""
    return Part(
        (channel_stream(channel),),
        lambda standings, at_us: decide_disable_channel(standings[0], reason),
    )


def catalog_refusal(reason: object) -> SuanpanError | None:
    """What an operator is told when the catalogue refused; None for other domains' refusals."""
    match reason:
        case NoSuchChannel():
            return NotFound("There is no such channel.")
        case PriceInThePast():
            return BadRequest("A price cannot begin in the past.")
        case _:
            return price_refusal(reason)
