"""The ledger's own fold inside a projection: states read and kept in one text column per account.

Pure: the projection loads and saves them. A history that cannot be raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from backend.journal.consumer import Arrived
from backend.ledger.account import ACCOUNT, Account

_PREFIX: Final = f"{ACCOUNT.kind}:"


def of_accounts(batch: Sequence[Arrived]) -> list[Arrived]:
    """The events of a batch that lie on account streams, in order."""
    return [arrived for arrived in batch if arrived.row.stream.startswith(_PREFIX)]


def streams_of(batch: Iterable[Arrived]) -> list[str]:
    """Each stream once, in order of first appearance."""
    return list(dict.fromkeys(arrived.row.stream for arrived in batch))


class AccountStates:
    """Accounts as they stand after the events folded so far."""

    def __init__(self, stored: Iterable[tuple[str, str]]) -> None:
        self._states: Final = {stream: ACCOUNT.decode(state.encode()) for stream, state in stored}

    def of(self, stream: str) -> Account:
        return self._states.get(stream, ACCOUNT.empty)

    def fold(self, arrived: Arrived) -> Account:
        """The account after one more event. Raises ImpossibleHistory, a ValueError."""
        row = arrived.row
        after = ACCOUNT.apply(self.of(row.stream), arrived.event, row.version, row.at_us)
        self._states[row.stream] = after
        return after
