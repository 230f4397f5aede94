"""Every kind of stream this site has, and how its events become a state."""

from __future__ import annotations

from typing import Final

from backend.catalog.channel import CHANNEL
from backend.catalog.price import PRICE
from backend.identity.key import KEY
from backend.identity.person import NAME, PERSON
from backend.journal.fold import Folds
from backend.ledger.account import ACCOUNT

ALL_FOLDS: Final = Folds([ACCOUNT, CHANNEL, PRICE, PERSON, NAME, KEY])
