"""`reprice`, `reconcile` and `correct` over a site on which everything happened."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, LiteralString
from uuid import UUID

import msgspec
import psycopg
import pytest

from backend.journal.commands import Command
from backend.kit.postgres import connect, fetch_all
from backend.ledger.decide import SettleAsked, decide_late, decide_release, decide_settle
from schemas.catalog import ChannelAdded, ChannelSettings, PriceSet
from schemas.ids import (
    ChannelId,
    PersonId,
    RequestId,
    account_stream,
    late_command_id,
    outcome_command_id,
)
from schemas.ledger import ReleaseReason, Served
from schemas.prices import Free, PerCall, PerToken, Price, PriceRef
from schemas.usage import Basis, Usage
from tests.conftest import Database
from tests.given import POINT, granting, hold_asked, holding, new_request, on_first
from tests.integration.audited_site import (
    Site,
    event_id_of,
    open_site,
    project,
    readable,
    tamper,
)
from tests.integration.test_cli_commands import Shell

CHAT: Final = "gpt-4o"
CALLED: Final = "gpt-image"
FREE: Final = "gpt-free"
PRICES: Final[dict[str, Price]] = {
    CHAT: PerToken(100_000, 200_000),
    CALLED: PerCall(2_000_000_000),
    FREE: Free(),
}
ANNA, BERT = 1, 2
BILLS: Final = Path(__file__).resolve().parents[1] / "bills"
SNAPSHOT: Final = "gpt-4o-2024-08-06"
DUE_AT_DOUBLE: Final = """
SELECT stream, sum(input_tokens * 200 + output_tokens * 400) FILTER (WHERE model = 'gpt-4o')
    + coalesce(sum(charged_upt + shortfall_upt) FILTER (WHERE model <> 'gpt-4o'), 0)
FROM read.requests WHERE outcome IN ('settled', 'late') GROUP BY stream
"""
COUNTED_ROWS: Final = "SELECT count(*) FROM event_log"


def served(model: str, status: int = 200) -> Served:
    upstream = SNAPSHOT if model == CHAT else model
    return Served(ChannelId(1), upstream, status, 900, 120, attempts=1)


class Calls:
    """Requests of two users, as the relay and the sweeper would end them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def hold(self, account: int, model: str = CHAT) -> RequestId:
        request = new_request()
        asked = hold_asked(
            request, PRICES[model], model=model, price_ref=PriceRef(model, 1),
            streamed=True, output_limit=100, channels=(ChannelId(1),),
        )  # fmt: skip
        self._site.held(await self._site.do(holding(account, asked, UUID(request))))
        return request

    async def settle(
        self, account: int, usage: Usage, model: str = CHAT, basis: Basis = Basis.REPORTED,
        status: int = 200,
    ) -> RequestId:  # fmt: skip
        request = await self.hold(account, model)
        asked = settle_of(request, usage, model, basis, status)
        await self._site.do(ending(account, request, lambda state: decide_settle(state, asked)))
        return request

    async def release(self, account: int, reason: ReleaseReason) -> RequestId:
        request = await self.hold(account)
        gone = served(CHAT, 502)
        await self._site.do(
            ending(account, request, lambda state: decide_release(state, request, reason, gone))
        )
        return request

    async def late(self, account: int, request: RequestId, sweep: UUID, usage: Usage) -> None:
        asked = self._site.on_its_terms(settle_of(request, usage, CHAT))
        await self._site.do(
            on_first(
                (account_stream(PersonId(account)),),
                lambda state, version, _: decide_late(state, version, asked, sweep, 0),
                late_command_id(request),
            )
        )


def settle_of(
    request: RequestId, usage: Usage, model: str, basis: Basis = Basis.REPORTED, status: int = 200
) -> SettleAsked:
    return SettleAsked(
        request, usage, basis, PRICES[model], PriceRef(model, 1), served(model, status)
    )


def ending(account: int, request: RequestId, decide: Any) -> Command:
    return on_first(
        (account_stream(PersonId(account)),),
        lambda state, _, __: decide(state),
        outcome_command_id(request),
        urgent=True,
    )


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(database, tmp_path / "data")


@pytest.fixture
async def busy(shell: Shell, database: Database) -> Shell:
    """A site after streamed, counted, swept, late, short, released, free and per-call requests."""
    for name in ("anna", "bert"):
        shell.json("user", "create", name, "--password-stdin", stdin="a password\n")
    async with open_site(database.app_url) as site:
        settings = ChannelSettings(
            "main",
            "openai",
            "https://api.openai.com/v1",
            tuple(PRICES),
            mapping=((CHAT, SNAPSHOT),),
        )
        await site.record("channel:1", ChannelAdded(settings))
        for model, price in PRICES.items():
            await site.record(f"price:{model}", PriceSet(price))
        await site.do(granting(ANNA, 100 * POINT))
        await site.do(granting(BERT, POINT))
        calls = Calls(site)
        await calls.settle(ANNA, Usage(input=40, output=60))
        await calls.settle(ANNA, Usage(input=30, cached_input=10, output=20))
        await calls.settle(ANNA, Usage(input=50, output=5), basis=Basis.COUNTED, status=0)
        await calls.settle(ANNA, Usage(), CALLED, Basis.NONE)
        await calls.settle(ANNA, Usage(input=9, output=9), FREE)
        await calls.release(ANNA, ReleaseReason.UPSTREAM_ERROR)
        swept = await calls.release(ANNA, ReleaseReason.SWEPT)
        version = await version_of(database.app_url, "account:1")
        sweep = await event_id_of(database.app_url, "account:1", version)
        await calls.late(ANNA, swept, sweep, Usage(input=70, output=80))
        await calls.settle(BERT, Usage(input=4_000, output=9_000))
    await readable(database.app_url)
    await project(database.app_url)
    return shell


async def version_of(url: str, stream: str) -> int:
    async with await connect(url, application="test") as connection:
        rows = await fetch_all(
            connection, "SELECT version FROM streams WHERE stream = %(s)s", {"s": stream}
        )
    return rows[0][0]


async def rows_of(url: str, query: LiteralString) -> list[tuple[Any, ...]]:
    async with await connect(url, application="test") as connection:
        return await fetch_all(connection, query)


async def test_the_recorded_prices_differ_by_nothing_and_change_nothing(
    busy: Shell, database: Database
) -> None:
    before = await rows_of(database.app_url, COUNTED_ROWS)
    report = busy.json("reprice", "--prices", "current")
    assert (report["total"]["difference"], report["anomalies"], report["users"]) == ("0", [], [])
    assert report["total"]["settlements"] == 7
    assert report["models"][CHAT]["shortfall"] != "0"
    assert await rows_of(database.app_url, COUNTED_ROWS) == before
    assert "gpt-4o" in busy("reprice", "--prices", "current").stdout


async def test_a_doubled_price_is_what_the_usage_log_adds_up_to(
    busy: Shell, database: Database, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"models": {"gpt-4o": {"scale": "2.0"}}}')
    # The usage log keeps cached input apart, at the price of input here.
    expected = dict(await rows_of(database.app_url, DUE_AT_DOUBLE))
    cached = "SELECT stream, sum(cached_tokens) * 200 FROM read.requests GROUP BY stream"
    for stream, more in await rows_of(database.app_url, cached):
        expected[stream] += more
    table = tmp_path / "what-if.csv"
    report = busy.json("reprice", "--prices", str(prices), "--csv", str(table))
    assert Decimal(report["total"]["what_if"]) * POINT == sum(expected.values())
    assert {user["account"]: Decimal(user["what_if"]) * POINT for user in report["users"]} == (
        expected
    )
    assert [user["user"] for user in report["users"]] == ["bert", "anna"]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(Decimal(row["what_if"]) for row in rows) == Decimal(report["total"]["what_if"])
    assert {row["account"] for row in rows} == {"account:1", "account:2"}


async def test_one_planted_wrong_settlement_is_found(busy: Shell, database: Database) -> None:
    find = """
    SELECT event_id, version FROM event_log
    WHERE stream = 'account:1' AND type = 'HoldSettled' ORDER BY version LIMIT 1
    """
    (row,) = await rows_of(database.app_url, find)
    tamper(
        database.superuser_url,
        f"""
        UPDATE event_log SET payload = convert_to(replace(convert_from(payload, 'UTF8'),
            '"amount_upt":16000', '"amount_upt":16001'), 'UTF8')
        WHERE event_id = '{row[0]}'
        """,
    )
    report = busy.json("reprice", "--prices", "current", code=1)
    (anomaly,) = report["anomalies"]
    assert (anomaly["event_id"], anomaly["version"]) == (str(row[0]), row[1])
    assert (anomaly["recorded"], anomaly["recomputed"]) == ("0.016001", "0.016")
    assert report["total"]["difference"] == "-0.000001"


async def test_what_a_what_if_cannot_do_is_said(busy: Shell, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.toml"
    unknown.write_text('[models]\nother = {scale = "2"}\n')
    assert "no model 'other'" in busy.refused("reprice", "--prices", str(unknown))
    assert "cannot be read" in busy.refused("reprice", "--prices", str(tmp_path / "none.json"))
    since = ("--since", "2027-01-02", "--until", "2027-01-01")
    assert "--since is before" in busy.refused("reprice", "--prices", "current", *since)
    assert "no time" in busy.refused("reprice", "--prices", "current", "--since", "soon")


def usage_page(begin_s: int, days: int, *results: dict[str, Any]) -> bytes:
    return msgspec.json.encode(
        {
            "object": "page",
            "data": [
                {
                    "object": "bucket",
                    "start_time": begin_s,
                    "end_time": begin_s + days * 86_400,
                    "results": [
                        {"object": "organization.usage.completions.result", **result}
                        for result in results
                    ],
                }
            ],
            "has_more": False,
            "next_page": None,
        }
    )


def result(model: str, requests: int, tokens: int, cached: int, output: int) -> dict[str, Any]:
    return {
        "model": model,
        "num_model_requests": requests,
        "input_tokens": tokens,
        "input_cached_tokens": cached,
        "output_tokens": output,
    }


async def test_a_bill_is_reconciled_with_what_was_settled(
    busy: Shell, database: Database, tmp_path: Path
) -> None:
    (when,) = await rows_of(
        database.app_url, "SELECT (extract(epoch FROM max(at)))::bigint FROM event_log"
    )
    begin_s = when[0] // 86_400 * 86_400 - 86_400
    bill = tmp_path / "usage.json"
    called = result(CALLED, 1, 0, 0, 0)
    free = result(FREE, 1, 9, 0, 9)
    # 40 + 30 + 10 + 50 + 70 + 4,000 of input; the stream that was left ran on to 70 of output.
    chat = result(SNAPSHOT, 5, 4_200, 10, 60 + 20 + 70 + 80 + 9_000)
    bill.write_bytes(usage_page(begin_s, 3, chat, called, free))
    report = busy.json("reconcile", "--provider", "openai", str(bill))
    lines = {line["model"]: line for line in report["lines"]}
    assert report["explained"]
    assert lines[SNAPSHOT]["reasons"] == ["ours_lacks_requests"]
    assert lines[SNAPSHOT]["difference"]["output"] == 65
    assert 1 <= len(lines[SNAPSHOT]["request_ids"]) <= 10
    assert (lines[CALLED]["reasons"], lines[FREE]["reasons"]) == (["equal"], ["equal"])

    bill.write_bytes(usage_page(begin_s, 3, {**chat, "num_model_requests": 50}, called, free))
    report = busy.json("reconcile", "--provider", "openai", str(bill), "--channel", "main", code=2)
    assert not report["explained"]
    shown = busy("reconcile", "--provider", "openai", str(bill))
    assert shown.returncode == 2
    assert "1 of them unexplained" in shown.stdout


async def test_what_a_reconciliation_cannot_do_is_said(busy: Shell, tmp_path: Path) -> None:
    bill = tmp_path / "usage.json"
    bill.write_bytes(usage_page(1_750_000_000, 1, result("m", 1, 1, 0, 1)))
    path = str(bill)
    assert "no page of Anthropic" in busy.refused("reconcile", "--provider", "anthropic", path)
    anthropic = str(BILLS / "anthropic_usage.json")
    asked = ("reconcile", "--provider", "anthropic", anthropic)
    assert "No channel leads to anthropic.com" in busy.refused(*asked)
    costs_alone = str(BILLS / "openai_costs.json")
    assert "costs but no usage" in busy.refused("reconcile", "--provider", "openai", costs_alone)
    refused = busy.refused("reconcile", "--provider", "openai", path, "--channel", "other")
    assert "no channel 'other'" in refused
    zone = ("--time-zone", "Mars/Base")
    assert "no time zone" in busy.refused("reconcile", "--provider", "openai", path, *zone)


async def test_a_correction_is_a_new_entry_that_names_the_old_one(
    busy: Shell, database: Database
) -> None:
    entries = busy.json("statement", "--user", "anna")["entries"]
    wrong = next(entry for entry in entries if entry["kind"] == "settle")
    balance = Decimal(busy.json("balance", "--user", "anna")["posted"])
    key = ("--idempotency-key", "once")
    asked = ("correct", "--user", "anna", "--entry", wrong["event_id"], "--reason", "too dear")
    done = busy.json(*asked, "--points", "+1.5", *key)
    assert (done["points"], done["corrects_event_id"], done["repeated"]) == (
        "1.5", wrong["event_id"], False,
    )  # fmt: skip
    again = busy.json(*asked, "--points", "1.5", *key)
    assert again == {**done, "repeated": True}
    assert "another correction" in busy.refused(*asked, "--points", "2", *key)
    assert Decimal(busy.json("balance", "--user", "anna")["posted"]) == balance + Decimal("1.5")
    newest = busy.json("statement", "--user", "anna")["entries"][0]
    assert (newest["kind"], newest["amount"], newest["explains_event_id"]) == (
        "correct", "1.5", wrong["event_id"],
    )  # fmt: skip
    back = busy.json("correct", "--user", "anna", "--entry", newest["event_id"],
                     "--points", "-1.5", "--reason", "it was right")  # fmt: skip
    assert Decimal(busy.json("balance", "--user", "anna")["posted"]) == balance
    assert busy.json("audit")["ok"]
    with psycopg.connect(database.app_url) as connection:
        found = connection.execute(
            "SELECT count(*) FROM event_log WHERE stream = 'person:1' AND type = 'ReasonGiven'"
        ).fetchone()
    assert found == (2,)
    assert back["version"] > done["version"]


async def test_what_cannot_be_corrected_is_refused(busy: Shell) -> None:
    entry = busy.json("statement", "--user", "anna")["entries"][-1]["event_id"]
    asked = ("correct", "--user", "anna", "--entry", entry, "--reason", "x", "--points")
    assert "points are missing" in busy.refused(*asked, "-1000")
    assert "is not zero" in busy.refused(*asked, "0")
    assert "plain decimal" in busy.refused(*asked, "1e3")
    of_bert = ("correct", "--user", "bert", "--entry", entry, "--reason", "x", "--points", "1")
    assert "has no entry" in busy.refused(*of_bert)
