"""Every kind of stream this site has, and how its events become a state."""

from __future__ import annotations

from typing import Final

from backend.catalog.accepted_list import PRICELIST
from backend.catalog.channel import CHANNEL
from backend.catalog.group import GROUP
from backend.catalog.limit import LIMIT
from backend.catalog.plan import PLAN
from backend.catalog.price import PRICE
from backend.identity.key import KEY
from backend.identity.person import NAME, PERSON
from backend.journal.fold import Folds
from backend.ledger.account import ACCOUNT
from backend.ledger.code import CODE

ALL_FOLDS: Final = Folds(
    [ACCOUNT, CODE, CHANNEL, PRICE, PRICELIST, PLAN, GROUP, LIMIT, PERSON, NAME, KEY]
)
