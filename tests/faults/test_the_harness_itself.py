"""What the harness rests on: gateways that act at the right moment, figures that count rightly."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path

from tests.faults.catalogue import CATALOGUE
from tests.faults.figures import Figures, Report
from tests.faults.gateway import Gateway, Road, kafka_request, saying
from tests.faults.history import History, Window
from tests.faults.load import Call, Ending, Returned
from tests.faults.site import Account
from tests.faults.test_faults_under_load import NEMESES

ACCOUNT = Account("account:1", "sk-test", 1)


class Listener:
    """A server that keeps what it hears and says it back."""

    def __init__(self) -> None:
        self.heard = b""
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1_000):
            self.heard += piece
            writer.write(piece)
        self.ended.set()
        writer.close()


async def listening(listener: Listener) -> tuple[asyncio.Server, str]:
    server = await asyncio.start_server(listener, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def called(ending: Ending, began_s: float, ended_s: float) -> Call:
    call = Call(ACCOUNT, "quick", streamed=False)
    call.ending, call.began_s, call.ended_s = ending, began_s, ended_s
    return call


async def test_a_gateway_acts_before_the_server_has_heard_and_drops_the_piece() -> None:
    listener, heard_then = Listener(), list[bytes]()
    server, place = await listening(listener)
    async with server, Gateway(place) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.address.split(":"))
        writer.write(b"BEGIN")
        assert await reader.readexactly(5) == b"BEGIN"
        gateway.on_sent(saying(b"COMMIT"), lambda: heard_then.append(listener.heard), forward=False)
        writer.write(b"COMMIT")
        assert await reader.read() == b""
        await listener.ended.wait()
    assert heard_then == [b"BEGIN"]
    assert listener.heard == b"BEGIN"


async def test_what_a_blackhole_held_back_arrives_late_and_after_a_reset_never() -> None:
    listener = Listener()
    server, place = await listening(listener)
    async with server, Gateway(place) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.address.split(":"))
        gateway.take(Road.BLACKHOLE)
        writer.write(b"late")
        await writer.drain()
        assert listener.heard == b""
        gateway.let_through()
        assert await reader.readexactly(4) == b"late"
        gateway.take(Road.DEAF)
        writer.write(b"lost")
        async with asyncio.timeout(5):
            while not listener.heard.endswith(b"lost"):  # noqa: ASYNC110 - a socket between
                await asyncio.sleep(0.005)
        await gateway.restore()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b"", "the answer is lost"


def test_a_kafka_request_is_found_behind_another_one() -> None:
    heartbeat = struct.pack(">ihhi", 8, 12, 4, 1)
    commit = struct.pack(">ihhi", 8, 8, 2, 2)
    assert kafka_request(8)(heartbeat + commit)
    assert not kafka_request(8)(heartbeat)


async def test_silence_that_meets_a_fault_is_time_out_of_service(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.windows.append(Window(10.0, 12.0, 12.5))
    history.calls += [
        called(Ending.ANSWERED, 1.0, 2.0),
        called(Ending.ANSWERED, 4.0, 5.0),
        called(Ending.ANSWERED, 9.0, 9.5),
        called(Ending.REFUSED, 11.0, 11.1),
        called(Ending.ANSWERED, 12.1, 12.5),
    ]
    history.close()
    assert history.unavailable_s() == 3.0, "the pause before the fault is not the fault's"
    assert history.recovery_s() == 0.5
    assert [call.ended_s for call in history.during()] == [12.5]


def test_a_call_that_may_have_happened_is_unknown_and_one_that_was_never_sent_is_not() -> None:
    broken = called(Ending.BROKEN, 0, 1)
    broken.trouble = "ReadError"
    assert broken.returned is Returned.UNKNOWN
    broken.trouble = "ConnectError"
    assert broken.returned is Returned.FAIL
    pending = called(Ending.REFUSED, 0, 1)
    pending.code = "settlement_pending"
    assert pending.returned is Returned.UNKNOWN


def test_the_table_has_a_line_for_every_fault() -> None:
    report = Report(rows=[Figures("F9", "Postgres restarts", 2, 0)], skipped={"F23": "no mount"})
    lines = "\n".join(report.lines())
    assert list(CATALOGUE) == [f"F{number}" for number in range(1, 32)]
    assert all(f"{fault} " in lines for fault in CATALOGUE)
    assert "not run: no mount" in lines
    assert {nemesis.fault for nemesis in NEMESES} <= CATALOGUE.keys()
