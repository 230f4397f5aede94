"""Schemas that were replaced: decoded as they were released, then carried to the newest one.

Never edited; a new schema of an event moves its old struct here with an `upcast`.
"""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import msgspec

from schemas.catalog import PriceSet
from schemas.identity import KeyCreated
from schemas.ids import ChannelId, KeyId, PersonId, RequestId
from schemas.ledger import GrantKind, HoldSettled, PointsGranted, PointsHeld, Served, UsageLate
from schemas.money import MicroPoints
from schemas.prices import Price, PriceRef
from schemas.usage import Basis, Usage


class Earlier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    TYPE: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    def upcast(self) -> Any:
        """The event in the next schema."""
        raise NotImplementedError


class PriceSet1(Earlier, frozen=True):
    TYPE: ClassVar[str] = "PriceSet"
    price: Price

    def upcast(self) -> PriceSet:
        return PriceSet(self.price)


class PointsGranted1(Earlier, frozen=True):
    TYPE: ClassVar[str] = "PointsGranted"
    amount_upt: MicroPoints
    kind: GrantKind
    actor: str

    def upcast(self) -> PointsGranted:
        return PointsGranted(self.amount_upt, self.kind, self.actor)


class PointsHeld1(Earlier, frozen=True):
    TYPE: ClassVar[str] = "PointsHeld"
    request_id: RequestId
    amount_upt: MicroPoints
    purpose: str
    key: KeyId
    model: str
    price: PriceRef
    streamed: bool
    input_bound: int
    output_bound: int
    channels: tuple[ChannelId, ...] = ()

    def upcast(self) -> PointsHeld:
        return PointsHeld(**msgspec.structs.asdict(self))


class HoldSettled1(Earlier, frozen=True):
    TYPE: ClassVar[str] = "HoldSettled"
    request_id: RequestId
    amount_upt: MicroPoints
    usage: Usage
    basis: Basis
    price: PriceRef
    served: Served
    swept: bool = False

    def upcast(self) -> HoldSettled:
        return HoldSettled(**msgspec.structs.asdict(self))


class UsageLate1(Earlier, frozen=True):
    TYPE: ClassVar[str] = "UsageLate"
    request_id: RequestId
    sweep_event_id: UUID
    amount_upt: MicroPoints
    shortfall_upt: MicroPoints
    usage: Usage
    basis: Basis
    price: PriceRef
    served: Served

    def upcast(self) -> UsageLate:
        return UsageLate(**msgspec.structs.asdict(self))


class KeyCreated1(Earlier, frozen=True):
    TYPE: ClassVar[str] = "KeyCreated"
    person: PersonId
    hash_sealed: bytes
    name: str
    hint: str
    models: tuple[str, ...] = ()
    expires_us: int | None = None

    def upcast(self) -> KeyCreated:
        return KeyCreated(**msgspec.structs.asdict(self))


EarlierEvent = PriceSet1 | PointsGranted1 | PointsHeld1 | HoldSettled1 | UsageLate1 | KeyCreated1
