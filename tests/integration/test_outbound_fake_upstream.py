"""The fake provider itself: as a process, steered over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.upstream", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait(5)
        process.stdout.close()


def ask(url: str, body: Any = None, **headers: str) -> Any:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=5)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", parts.path, data, headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_a_process_is_steered_and_asked_over_http(url: str) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    order = {"by_model": {"m": {"texts": ["A", "B"], "usage": usage}}, "queue": [{"texts": ["q"]}]}
    assert ask(f"{url}/__script", order) == {"ok": True}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    texts = [
        ask(f"{url}/v1/chat/completions", chat, **{"x-request-id": f"r{number}"})["choices"][0]
        for number in (1, 2)
    ]
    assert [choice["message"]["content"] for choice in texts] == ["q", "AB"]
    seen = ask(f"{url}/__seen")
    assert [entry["request_id"] for entry in seen] == ["r1", "r2"]
    assert seen[1]["reported_usage"] == usage
    assert ask(f"{url}/v1/models")["data"][0]["id"] == "m"
