"""A process that sleeps past its lease and wakes, one that is asked to end, and two that sweep."""

from __future__ import annotations

import asyncio
from random import Random

import httpx

from backend.folds import ALL_FOLDS
from backend.kit.clock import SystemClock
from backend.ledger.leases import LeaseKeeper, Progress
from backend.ledger.points import Points
from backend.ledger.spool import Spool
from schemas.ids import ChannelId
from schemas.ledger import ReleaseReason
from schemas.usage import Basis, Usage
from tests.conftest import Database
from tests.faults.books import check_audit, check_states, open_leases, read_books, until_ended
from tests.faults.conftest import MakeRole
from tests.faults.load import Call, Ending, Load
from tests.faults.site import PRICES, open_accounts, outside_database
from tests.given import hold_asked, new_request
from tests.integration.identity_site import Process, process_of
from tests.upstream import FakeUpstream, Script
from workers.sweeping import Sweeper
