"""Log lines: one per event, and no secret in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from backend.kit.logs import configure_logs, get_logger
from backend.kit.settings import LogSettings


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(form: str, **fields: object) -> list[str]:
    stream = io.StringIO()
    configure_logs(LogSettings(format="json" if form == "json" else "logfmt"), stream)
    get_logger("test").info("it_happened", **fields)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_secrets_are_hidden_wherever_they_sit(form: str) -> None:
    fields: dict[str, object] = {
        "password": "canary",
        "client_secret": "canary",
        "headers": {"Authorization": "canary", "inner": [{"api_key": "canary"}]},
        "text": "Bearer canarycanary and sk-canarycanary",
        "where": "postgresql://user:canary@host/db",
    }
    (line,) = _lines(form, **fields)
    assert "canary" not in line
    assert "user:" in line


def test_numbers_that_count_tokens_are_kept() -> None:
    (line,) = _lines("json", prompt_tokens=12, key_id=3)
    event = json.loads(line)
    assert (event["prompt_tokens"], event["key_id"], event["from"]) == (12, 3, "test")


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_an_event_is_one_line_whatever_it_holds(form: str) -> None:
    assert len(_lines(form, text="a\nb\r\nc", **{"odd key": 1})) == 1


def test_lines_of_libraries_have_our_form_and_no_secrets() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(format="json"), stream)
    logging.getLogger("library").warning("sent %s", "Bearer canarycanary")
    event = json.loads(stream.getvalue())
    assert event["logger"] == "library"
    assert event["level"] == "warning"
    assert "canary" not in event["event"]


def test_an_exception_stays_on_its_line() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(), stream)
    try:
        raise ValueError("postgresql://u:canary@h/d")
    except ValueError:
        get_logger("test").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError" in line
    assert "canary" not in line


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(level="warning"), stream)
    get_logger("test").info("quiet")
    assert stream.getvalue() == ""
