"""Runs an ASGI application on uvicorn inside our own loop, until asked to stop. Owns no
business.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Generator
from functools import partial
from typing import Any, Final, cast

import structlog
import uvicorn

from backend.app.http_protocol import BoundedProtocol, WaitingConnections
from backend.kit.settings import HttpSettings
from schemas.errors import SiteProblem

KEEP_ALIVE_S: Final = 75
BACKLOG: Final = 2_048
GRACE_S: Final = 120

_log = structlog.get_logger("app.serving")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: what is behind the server must stop in order after
    it.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening address, or SiteProblem saying what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        # From here on connections wait in the queue instead of being refused.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise SiteProblem(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another PORT, or stop what "
            "uses it."
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """`http://host:port` that a client on this machine can use."""
    host, port = bound.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(  # noqa: S104 - read, not bound
        host, f"[{host}]" if ":" in host else host
    )
    return f"http://{shown}:{port}"


async def serve(
    application: Any,
    bound: socket.socket,
    stop: asyncio.Event,
    settings: HttpSettings = HttpSettings(),  # noqa: B008 - frozen
) -> None:
    """Serves until `stop` is set, then answers what is under way and returns."""
    waiting = WaitingConnections(settings.waiting_connections_max)
    protocol = partial(BoundedProtocol, settings, waiting)
    server = _Server(
        uvicorn.Config(
            application,
            loop="none",
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            # It would believe X-Forwarded-For from this machine: see backend/http/address.py.
            proxy_headers=False,
            server_header=False,
            date_header=True,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    server.should_exit = True
    await serving


def stop_on_signals() -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        _log.info("stopping", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    return stop
