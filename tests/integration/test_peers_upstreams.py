"""What peers did wrong towards providers: long lines, foreign addresses, unchecked certificates
(docs/peers.md).
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from schemas.ledger import HoldReleased, HoldSettled
from schemas.prices import PerCall, PerToken
from schemas.usage import Basis
from tests.conftest import Server
from tests.integration.peers_ground import provider_saying
from tests.site import RunningSite, bearer, chat, role_process, shared_site
from tests.upstream import FakeUpstream, Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURES = ("webp", "gif", "heic", "svg", "png?x=1", "")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningSite]:
    async with shared_site(server, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def test_a_chunk_longer_than_any_usual_line_goes_on_whole_and_is_charged(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    long = "x" * 300_000
    model = site.model()
    await site.serves(upstream.url, model)
    anna = await site.customer("1000")
    upstream.play(Script((long, "end"), usage=None), Script((long, "end")))
    for _ in range(2):
        body = (await site.ask(anna.key, chat(model, stream=True))).body
        assert long.encode() in body
        assert body.endswith(b"data: [DONE]\n\n")
    counted, reported = await site.ended(anna, 2)
    assert isinstance(counted, HoldSettled)
    assert isinstance(reported, HoldSettled)
    assert (counted.basis, reported.basis) == (Basis.COUNTED, Basis.REPORTED)
    assert counted.usage.output > 300_000 // 64


async def test_an_answer_that_has_come_to_its_end_is_charged_as_reported_and_not_cut(
    site: RunningSite,
) -> None:
    """All of it at once, more by our own count than the account can pay, less by the provider's."""
    usage = {"prompt_tokens": 9, "completion_tokens": 1_500, "total_tokens": 1_509}
    frames = (
        {"choices": [{"index": 0, "delta": {"content": "x" * 20_000}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    said = b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames)
    async with provider_saying(head + said + b"data: [DONE]\n\n") as url:
        model = site.model()
        await site.serves(url, model, price=PerToken(input_npt=0, output_npt=1_000_000))
        anna = await site.customer("2")
        body = (await site.ask(anna.key, chat(model, stream=True))).body
    assert b'"length"' not in body
    (end,) = await site.ended(anna)
    assert isinstance(end, HoldSettled)
    assert (end.basis, end.amount_upt) == (Basis.REPORTED, 1_500_000)


async def test_what_an_operator_changes_holds_at_once_in_processes_that_run(
    site: RunningSite, upstream: FakeUpstream, tmp_path: Path
) -> None:
    model = site.model()
    channel = await site.serves(upstream.url, model, price=PerCall(1_000_000))
    anna = await site.customer()
    async with (
        role_process("api", site.database, tmp_path / "api") as other,
        aiohttp.ClientSession() as session,
    ):

        async def answer() -> tuple[int, str | None]:
            async with session.post(
                f"{other.url}/v1/chat/completions", headers=bearer(anna.key), json=chat(model)
            ) as response:
                await response.read()
                return response.status, response.headers.get("x-suanpan-points")

        async def becomes(wanted: tuple[int, str | None]) -> None:
            async with asyncio.timeout(5):
                while await answer() != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        assert await answer() == (200, "0.001")
        await site.base.catalog.set_price(model, PerCall(2_000_000))
        await becomes((200, "0.002"))
        await site.base.catalog.disable_channel(channel, "test")
        await becomes((404, None))
        await site.base.catalog.enable_channel(channel)
        await becomes((200, "0.002"))


async def test_a_picture_by_its_address_is_fetched_by_nobody_here_and_stops_nothing(
    site: RunningSite, upstream: FakeUpstream
) -> None:
    fetched: list[bytes] = []

    async def on_fetch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fetched.append(await reader.readline())
        writer.close()

    listening = await asyncio.start_server(on_fetch, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        model = site.model()
        await site.serves(upstream.url, model)
        anna = await site.customer("1000")
        for kind in PICTURES:
            address = f"http://127.0.0.1:{port}/picture.{kind}"
            part = {"type": "image_url", "image_url": {"url": address}}
            messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]
            for streamed in (True, False):
                reply = await site.ask(anna.key, chat(model, messages=messages, stream=streamed))
                assert reply.status == 200
            assert upstream.seen[-1].json["messages"] == messages, "it is the provider's matter"
        await site.ended(anna, 2 * len(PICTURES))
    assert fetched == []


async def test_a_provider_whose_certificate_nobody_vouches_for_is_told_nothing(
    site: RunningSite, tmp_path: Path
) -> None:
    async with impostor(tmp_path) as (url, heard):
        model = site.model()
        await site.serves(url, model)
        anna = await site.customer()
        for streamed in (True, False):
            reply = await site.ask(anna.key, chat(model, stream=streamed))
            assert reply.status == 502
        ends = await site.ended(anna, 2)
        assert all(isinstance(end, HoldReleased) for end in ends)
    assert heard == []


@asynccontextmanager
async def impostor(folder: Path) -> AsyncGenerator[tuple[str, list[bytes]]]:
    """A server with a certificate it made for itself, and what it was told over TLS."""
    heard: list[bytes] = []

    async def on_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(self_signed(folder))
    listening = await asyncio.start_server(on_call, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", heard


def self_signed(folder: Path) -> Path:
    """Key and certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    written = folder / "impostor.pem"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    written.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(pem)
    )
    return written
