"""The settlement table, cell by cell: what the upstream did × when the client left.

A gated upstream gives one chunk at a time, so that "after the first token" is a fact and not luck.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from schemas.ledger import HoldReleased, HoldSettled, PointsHeld, ReleaseReason
from schemas.money import format_points
from schemas.usage import Basis, Usage
from tests.conftest import Database
from tests.site import PRICE, Customer, RunningSite, chat, running_site
from tests.upstream import FakeUpstream, Script, Seen

REPORTED_UPT = 9 * 100 + 3 * 200
TEXTS = ("Alpha ", "beta ", "gamma ", "delta.")
SLACK_S = 1.5
"""On top of a deadline of the product: how late a busy machine may notice."""


def cost_upt(usage: Usage) -> int:
    return -(-(usage.input_total * PRICE.input_npt + usage.output * PRICE.output_npt) // 1_000)


async def one_end(site: RunningSite, customer: Customer) -> HoldSettled | HoldReleased:
    """The only outcome of the account's only request; nothing is held afterwards."""
    ends = await site.ended(customer)
    await site.idle()
    assert len(ends) == 1
    events = await site.events(customer)
    assert sum(isinstance(event, PointsHeld) for event in events) == 1
    state = await site.account(customer)
    assert (state.held_upt, state.holds) == (0, {})
    charged_upt = ends[0].amount_upt if isinstance(ends[0], HoldSettled) else 0
    assert state.charged_upt == charged_upt
    return ends[0]


def assert_settled(end: HoldSettled | HoldReleased, basis: Basis, output: int | None) -> None:
    """Settled on this basis; `output` tokens, where the tokenizer's count is known."""
    assert isinstance(end, HoldSettled), end
    assert end.basis is basis
    assert end.amount_upt == cost_upt(end.usage)
    assert end.usage.input > 0
    if output is not None:
        assert end.usage.output == output


async def counted_tokens(site: RunningSite, texts: tuple[str, ...]) -> int:
    del site
    from backend.kit.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    try:
        return await tokenizer.count_off_loop("m", "".join(texts))
    finally:
        tokenizer.close()


async def test_smoke(database: Database, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, running_site(database, tmp_path) as site:
        await site.serves(upstream.url)
        anna = await site.customer()
        reply = await site.ask(anna.key, chat())
        print(reply)
        async with site.stream(anna.key, chat()) as answer:
            print(answer.headers, await answer.rest())
        print(await site.events(anna))
