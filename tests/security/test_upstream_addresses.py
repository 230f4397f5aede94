"""Where calls go and what goes with them: only to the address an administrator wrote, never on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from backend.catalog.checks import check_base_url
from backend.cli.channel_probe import probe_channel
from schemas.catalog import ChannelSettings
from schemas.errors import BadRequest
from tests.conftest import Server
from tests.site import UPSTREAM_SECRET, RunningSite, bearer, chat, shared_site
from tests.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSED = (
    "", "localhost", "//host/v1", "http:", "http://", "http:///v1", "https://?", "http://:80/v1",
    "ftp://host/v1", "file:///etc/passwd", "gopher://host/", "javascript:alert(1)", "HTTP//host",
    "http://user@host/v1", "http://user:password@host/v1", "http://:@host/v1", "http://@host/v1",
    "http://host/v1?api-version=1", "http://host/v1?", "http://host/v1#a", "http://host/v1#",
    "http://host:0/v1", "http://host:65536/v1", "http://host:80:81/v1", "http://host:-1/v1",
    "http://host:x/v1", "http://[::1/v1", "http://[::1]x/v1", "http://[fe80::1%25eth0]/v1",
    "http://host /v1", " http://host/v1", "http://host/v1\n", "http://host/\r\nx: y",
    "http://host/v1\t", "http://ho\x00st/v1", "http://host\\@other/v1", "http:\\\\host\\v1",
    "http://host%2eother/v1", "http://host%00/v1", "http://bücher.example/v1", "http://①②⑦.0.0.1/",
    "http://ex\u0430mple.com/v1", "http://127.0.0.1./v1", "http://host./v1", "http://a..b/v1",
    "http://127.1/v1", "http://0x7f.1/v1", "http://0x7f000001/v1", "http://2130706433/v1",
    "http://0177.0.0.1/v1", "http://127.0.0.01/v1", "http://256.1.1.1/v1", "http://1.2.3.4.5/v1",
    "http://[::ffff:127.0.0.1]/v1", "http://[::ffff:7f00:1]/v1", "http://-/v1", "http://a_b c/v1",
    "http://host/" + "a" * 2_000,
)  # fmt: skip
TAKEN = {
    "http://127.0.0.1:8000/v1": "http://127.0.0.1:8000/v1",
    "https://api.example.com/v1/": "https://api.example.com/v1",
    "http://[::1]:8000": "http://[::1]:8000",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "http://ollama:11434/v1": "http://ollama:11434/v1",
    "http://model_server/v1": "http://model_server/v1",
    "https://1password.example/v1": "https://1password.example/v1",
}
"""An administrator may name any host, in the one way that all readers take for the same host."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(server, tmp_path_factory.mktemp("site")) as running:
        yield running


@asynccontextmanager
async def sending_on(location: str) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """(base URL, heads of requests) of a provider that sends every caller to `location`."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        status = (b"301 M", b"302 F", b"303 S", b"307 T", b"308 P")[len(heads) % 5]
        writer.write(
            b"HTTP/1.1 %s\r\nlocation: %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            % (status, location.encode())
        )
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", heads
    finally:
        listening.close()


def sentence_on(text: str) -> str | None:
    """Why an address is refused; None: it is not."""
    try:
        check_base_url(text)
    except BadRequest as error:
        return error.sentence
    return None


async def test_an_address_that_readers_could_take_for_different_hosts_is_refused() -> None:
    taken = [text for text in REFUSED if sentence_on(text) is None]
    assert not taken, "\n".join(taken)
    assert all(len(sentence_on(text) or "") < 300 for text in REFUSED)
    for text, kept in TAKEN.items():
        assert check_base_url(text) == kept


async def test_what_goes_into_a_header_or_a_log_has_no_line_break_and_nothing_unseen(
    site: RunningSite,
) -> None:
    opening, url = site.base.opening, "http://127.0.0.1:1/v1"
    good = ChannelSettings("a channel", "openai", url, ("m-1",))
    for unseen in ("\r\nx-injected: yes", "\n", "\r", "\x00", "\x1b[31m", "\u202e", "\u2028"):
        with pytest.raises(BadRequest):
            await opening.add_channel(good, f"sk-secret{unseen}")
        for settings in (
            ChannelSettings(f"name{unseen}x", "openai", url, ("m-1",)),
            ChannelSettings("name", "openai", url, (f"m{unseen}x",)),
            ChannelSettings("name", "openai", url, ("m-1",), mapping=(("m-1", f"u{unseen}x"),)),
            ChannelSettings("name", "openai", url, ("m-1",), api_version=f"2024{unseen}x"),
        ):
            with pytest.raises(BadRequest):
                await opening.add_channel(settings, "sk-secret")
    anna = await site.customer()
    for unseen in ("\r\nx: y", "\n", "\x1b[31m", "\u202e", "\u2066", "\x7f"):
        reply = await site.ask(anna.key, chat(f"m{unseen}x"))
        assert (reply.status, reply.error["code"]) == (400, "invalid_request")
        assert unseen not in reply.body.decode()


async def test_a_redirect_is_not_followed_and_the_secret_stays_where_it_was_sent(
    site: RunningSite,
) -> None:
    anna = await site.customer()
    async with FakeUpstream() as other, sending_on(f"{other.url}/chat/completions") as (url, heads):
        model = site.model()
        await site.serves(url, model)
        for streamed in (False, True):
            for _ in range(3):
                reply = await site.ask(anna.key, chat(model, stream=streamed))
                assert reply.status >= 400
                assert other.url not in reply.body.decode()
        assert heads, "the provider was asked"
        settings = ChannelSettings("a channel", "openai", url, (model,))
        for asked in (None, model):
            found = await asyncio.to_thread(probe_channel, settings, UPSTREAM_SECRET, asked)
            assert (found.ok, found.cause) == (False, "redirected")
        assert all(UPSTREAM_SECRET.encode() in head for head in heads)
        assert other.seen == []
    assert (await site.account(anna)).available_upt == 10_000_000


async def test_a_caller_cannot_say_where_a_call_goes_or_what_goes_with_it(
    site: RunningSite,
) -> None:
    anna = await site.customer()
    async with FakeUpstream() as upstream, FakeUpstream() as other:
        model = site.model()
        await site.serves(upstream.url, model)
        names = ("api_base", "base_url", "api_url", "endpoint", "host", "proxy", "url")
        elsewhere = dict.fromkeys(names, other.url)
        body = chat(model, api_key="sk-theirs", extra_headers={"x": "y"}, **elsewhere)
        sent = {
            **bearer(anna.key),
            "x-api-base": other.url,
            "x-forwarded-host": other.url,
            "x-original-url": other.url,
            "forwarded": f"host={other.url}",
            "openai-organization": "org-theirs",
            "openai-project": "proj-theirs",
            "x-api-key": "sk-theirs",
            "cookie": "session=theirs",
            "proxy-authorization": "Basic dGhlaXJz",
            "http2-settings": "theirs",
        }
        data = json.dumps(body).encode()
        reply = await site.send("POST", "/v1/chat/completions", sent, data)
        assert reply.status == 200, reply.body
        assert other.seen == []
        (seen,) = upstream.seen
        assert seen.path == "/v1/chat/completions"
        assert seen.headers["authorization"] == f"Bearer {UPSTREAM_SECRET}"
        carried = json.dumps(seen.headers)
        for theirs in ("theirs", anna.key, other.url, "x-api-base", "openai-organization"):
            assert theirs not in carried, theirs
