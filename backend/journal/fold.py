"""How the events of one kind of stream become its state. Pure: no clock, no randomness, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec

from schemas.ids import kind_of

State = TypeVar("State")

_ENCODER: Final = msgspec.json.Encoder()


class Fold(Generic[State]):
    """One kind of stream: its empty state and `apply(state, event, version, at_us) -> state`.

    `apply` raises ValueError for an event that cannot follow the state; it never mutates its input.
    """

    def __init__(
        self, kind: str, empty: State, apply: Callable[[State, Any, int, int], State]
    ) -> None:
        self.kind: Final = kind
        self.empty: Final = empty
        self.apply: Final = apply
        self._decoder: Final = msgspec.json.Decoder(type(empty))

    def encode(self, state: State) -> bytes:
        """The stored form of a state: JSON, the same bytes for the same history."""
        return _ENCODER.encode(state)

    def decode(self, data: bytes) -> State:
        return self._decoder.decode(data)


class Folds:
    """Every kind of stream that this process knows."""

    def __init__(self, folds: Iterable[Fold[Any]]) -> None:
        self._by_kind: Final = {fold.kind: fold for fold in folds}

    def of(self, stream: str) -> Fold[Any]:
        """The fold of a stream. KeyError for a kind nobody declared."""
        return self._by_kind[kind_of(stream)]
