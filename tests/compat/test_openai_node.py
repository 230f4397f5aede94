"""The `openai` package for Node, unmodified, against our relay with a provider behind it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.ledger import HoldReleased, HoldSettled
from tests.conftest import Database
from tests.site import running_site
from tests.upstream import FakeUpstream, Script

FOLDER = Path(__file__).parent / "node"
NODE_TIMEOUT_S = 60
TOOL = Script(('{"city": ', '"Xi\'an"}'), tool_name="weather")
SCRIPTS = (
    Script(fail_first=1, fail_status=429, retry_after="1"),
    Script(fail_first=1, fail_status=503, retry_after="1"),
    Script(fail_first=1, fail_status=429, retry_after="1"),
    Script(),
    Script(),
    TOOL,
    TOOL,
    Script(),
    Script(('{"name": ', '"Xi\'an"}')),
    Script(status=429),
    Script(cut_after=2),
)
"""What the provider does, in the order in which `sdk.mjs` calls."""


@pytest.fixture
def node() -> str:
    """The program; the test is skipped where it or the SDK is missing, unless all must run."""
    found = shutil.which("node")
    if found is None:
        reason = "node is not installed"
    elif not (FOLDER / "node_modules" / "openai").is_dir():
        reason = "tests/compat/node has no node_modules: run `npm ci` there, or `make setup`"
    else:
        return found
    if os.environ.get("SUANPAN_TEST_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


async def test_the_node_sdk_works_unmodified_and_is_charged_once_per_answer(
    node: str, database: Database, tmp_path: Path
) -> None:
    async with FakeUpstream() as upstream, running_site(database, tmp_path) as site:
        await site.serves(upstream.url)
        anna = await site.customer("1000")
        upstream.play(*SCRIPTS)
        found = await _run(node, BASE_URL=f"{site.url}/v1", API_KEY=anna.key, MODEL="m")
        _assert_answers(found)
        assert found["chat"]["requestId"] == upstream.seen[6].request_id
        _assert_refusals(found)
        ends = await site.ended(anna, 14)
        settled = [end for end in ends if isinstance(end, HoldSettled)]
        assert len(settled) == 10
        assert [end.basis for end in settled] == ["reported"] * 9 + ["counted"]
        assert sum(end.amount_upt for end in settled[:-1]) == 9 * 1500
        assert sum(isinstance(end, HoldReleased) for end in ends) == 4
        assert len(upstream.seen) == 14


def _assert_answers(found: dict[str, Any]) -> None:
    assert found["after429"] == found["after503"] == found["vision"] == "Hello!"
    assert found["streamAfter429"] == {"text": "Hello!", "usage": None}
    assert (found["chat"]["text"], found["chat"]["points"]) == ("Hello!", "0.0015")
    assert found["stream"]["text"] == "Hello!"
    assert found["stream"]["usage"]["total_tokens"] == 12
    assert found["toolStreamed"]["id"] == "call_1"
    for call in (found["tool"], found["toolStreamed"]):
        assert call["name"] == "weather"
        assert json.loads(call["arguments"]) == {"city": "Xi'an"}
    assert json.loads(found["structured"]) == {"name": "Xi'an"}


def _assert_refusals(found: dict[str, Any]) -> None:
    expected = {
        "rateLimit": ("RateLimitError", 429, "rate_limit_exceeded"),
        "unknownModel": ("NotFoundError", 404, "model_not_found"),
        "badRequest": ("BadRequestError", 400, "invalid_request"),
        "unknownKey": ("AuthenticationError", 401, "invalid_api_key"),
    }
    for name, (kind, status, code) in expected.items():
        assert found[name] == {"name": kind, "status": status, "code": code}
    assert found["brokenStream"]["name"] == "APIError"
    assert found["brokenStream"]["code"] == "upstream_error"
    assert found["models"] == ["m"]


async def _run(node: str, **environment: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        node,
        "sdk.mjs",
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), NODE_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()[-2000:]
    return json.loads(out)
