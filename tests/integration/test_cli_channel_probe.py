"""`channel test` against providers that answer, refuse, are silent or are something else."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backend.cli.channel_probe import probe_channel
from schemas.catalog import ChannelSettings
from schemas.errors import BadRequest

SECRET = "sk-canary-0123456789abcdef0123456789"
MODELS = {"object": "list", "data": [{"id": "gpt", "object": "model"}, {"id": "upstream-o3"}]}
CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}}]}
Answer = tuple[int, str, Any]
LISTS = {"/v1/models": (200, "application/json", MODELS)}


@contextmanager
def provider(answers: dict[str, Answer]) -> Generator[tuple[str, list[dict[str, Any]]]]:
    """(base URL, requests seen) of an HTTP server that answers paths as told, else 404."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            seen.append(
                {
                    "path": self.path,
                    "authorization": self.headers.get("authorization"),
                    "body": json.loads(self.rfile.read(length)) if length else None,
                }
            )
            status, kind, body = answers.get(self.path, (404, "text/html", "<h1>nothing</h1>"))
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            if status // 100 == 3:
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 - the name that http.server calls

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Quiet: what was asked is in `seen`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def channel(base_url: str, *models: str) -> ChannelSettings:
    return ChannelSettings("c", "openai", base_url, models, mapping=(("o3", "upstream-o3"),))


def test_a_provider_that_lists_the_models_is_well() -> None:
    with provider(LISTS) as (url, seen):
        found = probe_channel(channel(url, "gpt", "o3"), SECRET, None)
    assert found.ok
    assert found.models == ("gpt", "upstream-o3")
    assert [call["authorization"] for call in seen] == [f"Bearer {SECRET}"]


def test_a_model_that_is_not_listed_is_named() -> None:
    with provider(LISTS) as (url, _):
        found = probe_channel(channel(url, "gpt", "o9"), SECRET, None)
    assert (found.ok, found.cause, found.missing) == (False, "model_not_listed", ("o9",))
    assert "o9" in found.sentence


def test_a_model_is_asked_for_one_word_under_its_upstream_name() -> None:
    answers = {"/v1/chat/completions": (200, "application/json", CHAT)}
    with provider(answers) as (url, seen):
        found = probe_channel(channel(url, "o3"), SECRET, "o3")
    assert found.ok
    assert seen[-1]["body"]["model"] == "upstream-o3"
    limits = {"max_tokens", "max_completion_tokens"} & seen[-1]["body"].keys()
    assert [seen[-1]["body"][name] for name in limits] == [16]


def refused(status: int, message: str) -> dict[str, Answer]:
    body = {"error": {"message": message, "type": "x", "code": None}}
    return {"/v1/models": (status, "application/json", body)}


@pytest.mark.parametrize(
    ("answers", "cause", "words"),
    [
        (refused(401, f"Incorrect API key provided: {SECRET}"), "auth", "secret"),
        (refused(429, "slow down"), "rate_limit", "rate limit"),
        (refused(503, "overloaded"), "overloaded", "overloaded"),
        ({"/v1/models": (200, "text/html", "<html>")}, "not_an_api", "/v1"),
        ({"/v1/models": (302, "text/html", "")}, "redirected", "elsewhere"),
        ({}, "no_list", "--model"),
    ],
)
def test_what_is_wrong_is_named_without_the_secret(
    answers: dict[str, Answer], cause: str, words: str
) -> None:
    with provider(answers) as (url, _):
        found = probe_channel(channel(url, "gpt"), SECRET, None)
    assert (found.ok, found.cause) == (False, cause)
    assert words in found.sentence
    assert SECRET not in str(found.as_data())


def test_addresses_that_lead_nowhere_are_told_apart() -> None:
    with provider({}) as (url, _):
        closed = url
        tls = probe_channel(channel(url.replace("http:", "https:"), "gpt"), SECRET, None)
    assert tls.cause == "tls_failed"
    assert probe_channel(channel(closed, "gpt"), SECRET, None).cause == "refused"
    unknown = channel("http://no-such-host.invalid/v1", "gpt")
    assert probe_channel(unknown, SECRET, None).cause == "unknown_host"


def test_only_a_model_of_the_channel_can_be_asked() -> None:
    with pytest.raises(BadRequest):
        probe_channel(channel("http://127.0.0.1:1/v1", "gpt"), SECRET, "other")
