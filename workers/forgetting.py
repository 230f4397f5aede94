"""Finishes forgettings that were cut off, and keeps the epoch of the data keys young.

It decides nothing about people: who is forgotten says the log.
"""

from __future__ import annotations

from typing import Final

from backend.forgetting import Forgetting
from backend.identity.key_epochs import KeyEpochs
from backend.kit.clock import Randomness
from workers.rounds import Rounds

EVERY_S: Final = 300.0
PASS_TIMEOUT_S: Final = 600.0


class Forgetter(Rounds):
    def __init__(
        self,
        forgetting: Forgetting,
        epochs: KeyEpochs,
        randomness: Randomness,
        every_s: float = EVERY_S,
    ) -> None:
        super().__init__("forgetter", every_s, PASS_TIMEOUT_S, randomness)
        self._forgetting: Final = forgetting
        self._epochs: Final = epochs
        self.finished = 0

    async def once(self) -> None:
        self.finished += await self._forgetting.finish_all()
        await self._epochs.tend()
