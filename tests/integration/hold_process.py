"""A process of its own that asks for many holds at once and prints how they ended, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from schemas.errors import InsufficientPoints
from tests.given import hold_asked, new_id, new_request
from tests.integration.ledger_site import LedgerSite, ledger_on


async def hold_many(site: LedgerSite, account: str, count: int) -> Counter[str]:
    """`count` holds of one point at once: how many were held and refused."""

    async def one() -> str:
        try:
            await site.points.hold(account, hold_asked(new_request()), new_id())
        except InsufficientPoints:
            return "refused"
        return "held"

    return Counter(await asyncio.gather(*(one() for _ in range(count))))


async def _main(url: str, account: str, count: int) -> None:
    async with ledger_on(url) as site:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(json.dumps(await hold_many(site, account, count)), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
