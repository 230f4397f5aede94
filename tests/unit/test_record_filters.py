"""What is asked for of records: text from outside becomes a filter, or a sentence that says why."""

from __future__ import annotations

import csv
import io
from typing import Any
from uuid import UUID

import msgspec
import pytest

from backend.kit.time_text import iso_text, parse_time
from backend.ledger.record_filters import (
    ALWAYS_US,
    NEWEST_VERSION,
    RecordQuery,
    entry_filter,
    request_filter,
    statement_filter,
    usage_filter,
)
from backend.ledger.record_pages import (
    RequestPlace,
    StatementPlace,
    log_cursor,
    log_position,
    request_cursor,
    request_place,
    statement_cursor,
    statement_place,
)
from backend.ledger.record_texts import csv_header, csv_lines, json_lines
from schemas.errors import BadRequest
from schemas.event import Position

REQUEST = "01977420-dc12-7180-b5bf-992dc9e9c614"
NOON_US = 1_738_324_800_000_000


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("2025-01-31T12:00:00Z", NOON_US),
        ("2025-01-31T12:00:00", NOON_US),
        ("2025-01-31T20:00:00+08:00", NOON_US),
        ("2025-01-31T20:00:00 08:00", NOON_US),
        ("2025-01-31T12:00:00.000001Z", NOON_US + 1),
        ("2025-01-31", NOON_US - 12 * 3_600_000_000),
    ],
)
def test_a_time_is_iso_8601_and_utc_where_it_says_nothing(text: str, at_us: int) -> None:
    assert parse_time(text) == at_us


@pytest.mark.parametrize("text", ["", "soon", "2025-13-01", "1738324800", "2025-01-31T25:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="no time"):
        parse_time(text)


def test_a_time_is_written_to_the_microsecond_and_read_back() -> None:
    assert iso_text(NOON_US + 42) == "2025-01-31T12:00:00.000042Z"
    assert parse_time(iso_text(NOON_US + 42)) == NOON_US + 42


def test_a_query_without_anything_wants_everything() -> None:
    wanted = statement_filter(RecordQuery(), None)
    assert (wanted.since_us, wanted.until_us, wanted.kinds) == (0, ALWAYS_US, None)
    assert (wanted.least_upt, wanted.most_upt, wanted.sign) == (None, None, 0)


def test_all_of_a_statements_filters_are_taken() -> None:
    query = RecordQuery(
        since="2025-01-31", until="2025-02-01", kind="grant,gift", key=7, model="m", channel=0,
        request_id=REQUEST.upper(), basis="counted", at_least="0.5", at_most="10", direction="out",
    )  # fmt: skip
    wanted = statement_filter(query, "account:3")
    assert wanted.account == "account:3"
    assert wanted.until_us - wanted.since_us == 86_400_000_000
    assert (wanted.kinds, wanted.key, wanted.channel) == (["grant", "gift"], 7, 0)
    assert (wanted.request_id, wanted.basis) == (REQUEST, "counted")
    assert (wanted.least_upt, wanted.most_upt, wanted.sign) == (500_000, 10_000_000, -1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"since": "2025-02-01", "until": "2025-01-31"}, "before"),
        ({"kind": "grants"}, "`kind` is one of"),
        ({"kind": ""}, "`kind` is one of"),
        ({"key": -1}, "`key`"),
        ({"channel": 2**63}, "`channel`"),
        ({"model": "a\x00b"}, "`model`"),
        ({"request_id": "x"}, "`request_id`"),
        ({"basis": "guessed"}, "`basis`"),
        ({"at_least": "-1"}, "`at_least`"),
        ({"at_least": "1e3"}, "`at_least`"),
        ({"at_most": "0.0000001"}, "`at_most`"),
        ({"at_least": "2", "at_most": "1"}, "`at_least`"),
        ({"direction": "up"}, "`direction`"),
        ({"outcome": "settled"}, "`outcome` is not looked for"),
        ({"type": "HoldSettled"}, "`type` is not looked for"),
    ],
)
def test_a_wrong_filter_of_a_statement_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        statement_filter(RecordQuery(**given), None)
    assert words in refused.value.sentence


def test_other_lists_know_other_filters() -> None:
    assert request_filter(RecordQuery(outcome="late,open"), None).outcomes == ["late", "open"]
    assert entry_filter(RecordQuery(type="HoldSettled"), "account:1").types == ["HoldSettled"]
    assert usage_filter(RecordQuery(model="m"), None).model == "m"
    for refused in (
        lambda: request_filter(RecordQuery(direction="in"), None),
        lambda: usage_filter(RecordQuery(basis="none"), None),
        lambda: entry_filter(RecordQuery(key=1), None),
        lambda: entry_filter(RecordQuery(type="a b"), None),
    ):
        with pytest.raises(BadRequest):
            refused()


def test_a_cursor_is_read_back_as_it_was_given() -> None:
    of_all = statement_cursor(None, NOON_US, "account:7", 12)
    assert statement_place(of_all, None) == StatementPlace(NOON_US, "account:7", 12)
    own = statement_cursor("account:7", NOON_US, "account:7", 12)
    assert statement_place(own, "account:7").version == 12
    assert request_place(request_cursor(NOON_US, REQUEST)) == RequestPlace(NOON_US, REQUEST)
    position = Position(2, 2**40, 77)
    assert log_position(log_cursor(position)) == position
    assert statement_place(None, None).version == NEWEST_VERSION


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.2", "1.a\x00.3", "9" * 30, "1" * 300])
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    for place in (
        lambda: statement_place(cursor, None),
        lambda: statement_place(cursor, "account:1"),
        lambda: request_place(cursor),
        lambda: log_position(cursor),
    ):
        with pytest.raises(BadRequest, match="`before`"):
            place()


class Line(msgspec.Struct, frozen=True):
    amount: str
    model: str | None
    tokens: int
    swept: bool
    event_id: UUID
    payload: dict[str, Any]


def line(model: str | None, amount: str = "-0.5") -> Line:
    return Line(amount, model, -3, False, UUID(int=5), {"a": "=1"})


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_made_text(start: str) -> None:
    text = csv_lines([line(f"{start}cmd|' /C calc'!A0")]).decode()
    (row,) = csv.reader(io.StringIO(text, newline=""))
    assert row[1] == f"'{start}cmd|' /C calc'!A0"


def test_numbers_stay_numbers_and_text_is_utf_8_in_csv() -> None:
    header, lines = csv_header(Line), csv_lines([line('模型, "q"\nnext'), line(None)])
    assert header == b"amount,model,tokens,swept,event_id,payload\r\n"
    rows = list(csv.reader(io.StringIO(lines.decode("utf-8"), newline="")))
    assert rows[0][:4] == ["-0.5", '模型, "q"\nnext', "-3", "false"]
    assert rows[1][1] == ""
    assert float(rows[0][0]) == -0.5
    assert msgspec.json.decode(rows[0][5]) == {"a": "=1"}
    assert lines.endswith(b"\r\n")


def test_jsonl_has_one_object_a_line_with_nothing_changed() -> None:
    lines = json_lines([line("=x"), line("y")])
    decoded = [msgspec.json.decode(one, type=Line) for one in lines.splitlines()]
    assert [one.model for one in decoded] == ["=x", "y"]
    assert lines.count(b"\n") == 2
