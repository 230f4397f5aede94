"""What a price list would change: reviewed first, kept in a file, accepted as it was. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from backend.catalog.decide import changes_nothing
from backend.catalog.price import ModelPrice, price_at
from backend.catalog.price_list import ListedModel, PriceList, Unsupported
from backend.catalog.price_list_row import DatedPrice
from backend.catalog.price_text import amounts_of
from schemas.catalog import PriceSet, PriceSource
from schemas.errors import BadRequest, NotFound
from schemas.prices import PerToken, Price

FORMAT: Final = "suanpan price proposal 1"
PROPOSAL_BYTES_MAX: Final = 32 * 1024 * 1024
_PERMILLE: Final = 1_000


class Status(StrEnum):
    NEW = "new"
    CHANGED = "changed"
    SAME = "same"


class ProposedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    status: Status
    base_version: int
    """Of the model's prices at the review; it is accepted on top of no other one. 0: none."""
    prices: tuple[DatedPrice, ...]
    source: PriceSource
    change: str
    """In a word: the amount that moves most, and by how much."""
    remarks: tuple[str, ...] = ()


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`digest` is the SHA-256 of the rest, so that what was reviewed is what is accepted."""

    format: str
    list_name: str
    as_of: str
    list_digest: str
    currency: str
    points_per_unit: str
    reviewed_us: int
    models: tuple[ProposedModel, ...]
    unsupported: tuple[Unsupported, ...]
    digest: str = ""

    def sets(self, names: Collection[str] = ()) -> tuple[ProposedModel, ...]:
        """The models whose prices would be set: all of them, or those named. Raises NotFound."""
        found = {entry.model: entry for entry in self.models}
        missing = [name for name in names if name not in found]
        if missing:
            raise NotFound(f"The proposal has no price of {missing[0][:80]!r}.")
        chosen = [found[name] for name in dict.fromkeys(names)] if names else self.models
        return tuple(entry for entry in chosen if entry.status is not Status.SAME)


Current = Mapping[str, tuple[int, ModelPrice]]
"""Version and state of the models that have a price stream."""


def review(prices: PriceList, current: Current, names: Collection[str], now_us: int) -> Proposal:
    """The list beside what is in force; `names`: only these models. Raises NotFound."""
    known = {entry.model for entry in prices.models} | {one.model for one in prices.unsupported}
    missing = [name for name in names if name not in known]
    if missing:
        raise NotFound(f"The price list has no model {missing[0][:80]!r}.")
    proposal = Proposal(
        format=FORMAT,
        list_name=prices.name,
        as_of=prices.as_of,
        list_digest=prices.digest.hex(),
        currency=prices.currency,
        points_per_unit=prices.points_per_unit,
        reviewed_us=now_us,
        models=tuple(
            _proposed(entry, *current.get(entry.model, (0, ModelPrice())), now_us)
            for entry in prices.models
            if not names or entry.model in names
        ),
        unsupported=tuple(one for one in prices.unsupported if not names or one.model in names),
    )
    return msgspec.structs.replace(proposal, digest=_digest(proposal))


def write_proposal(proposal: Proposal) -> bytes:
    return msgspec.json.format(msgspec.json.encode(proposal), indent=1) + b"\n"


def read_proposal(data: bytes) -> Proposal:
    """A reviewed proposal, exactly as it was written. Raises BadRequest."""
    if len(data) > PROPOSAL_BYTES_MAX:
        raise BadRequest("The file is too large to be a proposal.")
    try:
        proposal = msgspec.json.decode(data, type=Proposal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("The file is no proposal of `suanpan price import`.") from error
    if proposal.format != FORMAT:
        raise BadRequest("The proposal is of another version of Suanpan; review the list again.")
    if proposal.digest != _digest(proposal):
        raise BadRequest("The proposal was changed after its review; review the list again.")
    return proposal


def sets_from(entry: ProposedModel, from_us: int) -> tuple[PriceSet, ...]:
    """The versions that accepting a model's prices from a time on (0: at once) records."""
    times = [max(dated.effective_us, from_us) for dated in entry.prices]
    return tuple(
        PriceSet(dated.price, begins_us, entry.source)
        for index, (dated, begins_us) in enumerate(zip(entry.prices, times, strict=True))
        if begins_us not in times[index + 1 :]
    )


def _digest(proposal: Proposal) -> str:
    unsigned = msgspec.structs.replace(proposal, digest="")
    return hashlib.sha256(msgspec.json.encode(unsigned)).hexdigest()


def _proposed(entry: ListedModel, version: int, state: ModelPrice, now_us: int) -> ProposedModel:
    wanted = sets_from(ProposedModel(entry.model, Status.NEW, 0, entry.prices, entry.source, ""), 0)
    remarks = entry.remarks
    counts = price_at(state, version, now_us)
    if changes_nothing(state, version, wanted, now_us):
        status, change = Status.SAME, ""
    elif version == 0:
        status, change = Status.NEW, ""
    else:
        status = Status.CHANGED
        change = change_words(state.price if counts is None else counts.price, wanted[0].price)
        if state.from_us > now_us:
            remarks = (*remarks, "ends prices that wait for their time")
    return ProposedModel(entry.model, status, version, entry.prices, entry.source, change, remarks)


def change_words(old: Price | None, new: Price) -> str:
    """The amount that moves most: `output +10 %`. Kinds that cannot be compared are named."""
    if old is None or type(old) is not type(new):
        return "another kind of price"
    before, after = amounts_of(old), amounts_of(new)
    moves = [
        (abs(after[name] - amount), amount, name)
        for name, amount in before.items()
        if name in after and after[name] != amount
    ]
    others = sorted(before.keys() ^ after.keys())
    if isinstance(old, PerToken) and isinstance(new, PerToken) and old.windows != new.windows:
        others.append("windows")
    if not moves:
        return f"other parts: {', '.join(others[:3])}" if others else "other times"
    _, amount, name = max(moves, key=_relative)
    return f"{name} {_percent(amount, after[name])}"


def _relative(move: tuple[int, int, str]) -> tuple[int, str]:
    difference, amount, name = move
    # What was free moves without measure; ties go by name, so that a review can be repeated.
    return (difference * 10**12 // amount if amount else 10**30), name


def _percent(old: int, new: int) -> str:
    """With one decimal, rounded to the nearest: `+10 %`, `-33.3 %`."""
    if old == 0:
        return "was free"
    permille = (abs(new - old) * 2 * _PERMILLE + old) // (2 * old)
    whole, tenth = divmod(permille, 10)
    sign = "+" if new > old else "-"
    return f"{sign}{whole}.{tenth} %" if tenth else f"{sign}{whole} %"


def batches(entries: Sequence[ProposedModel], size: int) -> list[tuple[ProposedModel, ...]]:
    """Runs of at most `size` models, each of which is accepted whole."""
    return [tuple(entries[first : first + size]) for first in range(0, len(entries), size)]
