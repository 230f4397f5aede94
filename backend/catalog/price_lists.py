"""Price lists: reviewed against what is in force, then accepted as they were reviewed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from backend.catalog.accepted_list import PRICELIST
from backend.catalog.checks import check_list_name
from backend.catalog.decide import (
    ListedPrices,
    NothingToChange,
    PriceChangedSince,
    TooManyScheduled,
    decide_accept_list,
)
from backend.catalog.price import PRICE, ModelPrice
from backend.catalog.price_checks import check_priced_model
from backend.catalog.price_list import PriceList
from backend.catalog.price_proposal import Proposal, ProposedModel, batches, review, sets_from
from backend.journal.commands import AlreadyDone, Command, Landed, Refused
from backend.journal.fold import Folds
from backend.journal.reader import find_command
from backend.journal.units import Part
from backend.journal.view import load_states
from backend.journal.writer import Writer
from backend.kit.postgres import Pool
from schemas.catalog import PriceListAccepted
from schemas.errors import Conflict, SuanpanError
from schemas.ids import price_stream, pricelist_stream
from schemas.registry import decode

BUILTIN: Final = "builtin"
UNIT_MODELS_MAX: Final = 250
"""A list of more models lands in several units, each of them whole."""
_BUILTIN_FILE: Final = Path(__file__).with_name("price_catalogue.json")
_FOLDS: Final = Folds([PRICE, PRICELIST])


class AcceptedPrices(msgspec.Struct, frozen=True):
    models: tuple[str, ...]
    """Those that have a new price now, or will have one."""
    as_before: tuple[str, ...]
    """Those that had what was accepted already."""


def builtin_list() -> bytes:
    """The list that comes with Suanpan."""
    return _BUILTIN_FILE.read_bytes()


class PriceLists:
    """Part of the catalogue. Raises Unavailable or psycopg errors while Postgres is away."""

    def __init__(self, writer: Writer, pool: Pool) -> None:
        self._writer: Final = writer
        self._pool: Final = pool

    async def review(self, prices: PriceList, names: Collection[str], now_us: int) -> Proposal:
        """What accepting the list (`names`: only these models) would change; changes nothing.

        Raises NotFound, BadRequest.
        """
        check_list_name(prices.name)
        streams = [price_stream(entry.model) for entry in prices.models]
        async with self._pool.connection() as connection:
            states = await load_states(connection, _FOLDS, streams)
        current: dict[str, tuple[int, ModelPrice]] = {
            entry.model: states[price_stream(entry.model)]
            for entry in prices.models
            if price_stream(entry.model) in states
        }
        return review(prices, current, names, now_us)

    async def accept(
        self, proposal: Proposal, names: Collection[str], from_us: int, actor: str
    ) -> AcceptedPrices:
        """Sets what was reviewed (`names`: only these models), from a time on (0: at once).

        Raises NotFound, BadRequest; Conflict where a price is another one than at the review.
        """
        check_list_name(proposal.list_name)
        chosen = proposal.sets(names)
        done: list[str] = []
        for batch in batches(chosen, UNIT_MODELS_MAX):
            try:
                done += await self._accept_unit(proposal, batch, from_us, actor)
            except Conflict as error:
                if not done:
                    raise
                raise Conflict(f"{error.sentence} {len(done)} models were set before.") from error
        return AcceptedPrices(
            tuple(done), tuple(entry.model for entry in chosen if entry.model not in set(done))
        )

    async def _accept_unit(
        self, proposal: Proposal, batch: tuple[ProposedModel, ...], from_us: int, actor: str
    ) -> tuple[str, ...]:
        part = accepting(proposal, batch, from_us, actor)
        command = Command(self._writer.new_id(), part.streams, part.decide)
        match await self._writer.submit(command):
            case Landed():
                async with self._pool.connection() as connection:
                    found = await find_command(connection, command.command_id)
                assert found is not None, "it landed a moment ago"
                fact = decode(found[1][0])
                assert isinstance(fact, PriceListAccepted), "the list's stream is its home"
                return fact.models
            case Refused(NothingToChange()):
                return ()
            case Refused(reason):
                raise price_refusal(reason) or Conflict("The prices cannot be set so.")
            case AlreadyDone():
                raise Conflict("This was recorded before.")


def accepting(
    proposal: Proposal, batch: tuple[ProposedModel, ...], from_us: int, actor: str
) -> Part:
    """The acceptance of some models' prices, as a unit. Raises BadRequest."""
    listed = tuple(
        ListedPrices(entry.model, entry.base_version, sets_from(entry, from_us)) for entry in batch
    )
    for entry in listed:
        for price in entry.prices:
            check_priced_model(entry.model, price.price)
    fact = PriceListAccepted(
        digest=bytes.fromhex(proposal.list_digest),
        currency=proposal.currency,
        points_per_unit=proposal.points_per_unit,
        models=(),
        actor=actor,
    )
    streams = (
        pricelist_stream(proposal.list_name),
        *(price_stream(entry.model) for entry in batch),
    )
    return Part(
        streams, lambda standings, at_us: decide_accept_list(standings, listed, fact, at_us)
    )


def price_refusal(reason: object) -> SuanpanError | None:
    """What an operator is told when a price was refused; None for other refusals."""
    match reason:
        case PriceChangedSince(model):
            return Conflict(
                f"The price of {model!r} was changed after the review; review the list again."
            )
        case TooManyScheduled():
            return Conflict("Too many prices of the model wait for their time already.")
        case _:
            return None
