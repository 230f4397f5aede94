"""`Transport` over aiohttp, for the hot path: pooled connections, bytes as they come, no cookies.

It knows no provider, follows no redirect, decodes nothing and never sends a call twice once a
byte of the answer was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Final, cast
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from backend.kit.outbound import (
    AnswerTooLarge,
    ConnectFailed,
    Deadlines,
    FirstByteTimeout,
    IdleTimeout,
    UpstreamCut,
    UpstreamRequest,
)

_AUTO_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_URLS_MAX: Final = 4_096
_STALE_WITHIN_S: Final = 1.0
_DRAIN_S: Final = 0.25
_DRAIN_BYTES_MAX: Final = 64 * 1024


class _Attempt:
    """What is known of one try: did it get a connection, and had that one been used before?"""

    __slots__ = ("connected_s", "reused")

    def __init__(self) -> None:
        self.connected_s: float | None = None
        self.reused = False

    def stale_at(self, now_s: float) -> bool:
        return (
            self.reused
            and self.connected_s is not None
            and now_s - self.connected_s < _STALE_WITHIN_S
        )


_attempt: ContextVar[_Attempt] = ContextVar("suanpan_outbound_attempt")


class _Connector(aiohttp.TCPConnector):
    """Tells a stale keep-alive connection from a new one: only the former may be retried."""

    def __init__(self, limit: int, keepalive_s: float) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            limit=limit, keepalive_timeout=keepalive_s, ttl_dns_cache=30
        )
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        attempt = _attempt.get()
        attempt.connected_s = asyncio.get_running_loop().time()
        protocol = connection.protocol
        if protocol is not None:
            attempt.reused = protocol in self._used
            self._used.add(protocol)
        return connection


class AioHttpTransport:
    """A pool of at most `limit` connections. Make it inside the running event loop."""

    def __init__(self, *, limit: int = 1_000, keepalive_s: float = 30.0) -> None:
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit, keepalive_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_AUTO_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._loop = asyncio.get_running_loop()
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[Deadlines, aiohttp.ClientTimeout] = {}

    async def open(self, request: UpstreamRequest, deadlines: Deadlines) -> HttpAnswer:
        """See `Transport.open`.

        A pooled connection that breaks at once and before any byte of the answer was almost
        surely closed by the provider while it lay idle: it is replaced, once. A new connection,
        or one that breaks later, is not: the provider may have been at work.
        """
        url = self._url(request.url)
        timeout = self._timeout(deadlines)
        for retry_allowed in (True, False):
            attempt = _Attempt()
            token = _attempt.set(attempt)
            try:
                response = await self._session.request(
                    request.method,
                    url,
                    headers=request.headers,
                    data=request.body or None,
                    timeout=timeout,
                    allow_redirects=False,
                )
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
                if not (retry_allowed and attempt.stale_at(self._loop.time())):
                    raise _open_error(error, attempt) from error
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise _open_error(error, attempt) from error
            else:
                return HttpAnswer(response, deadlines.idle_s)
            finally:
                _attempt.reset(token)
        raise AssertionError("the second try returns or raises")

    async def close(self) -> None:
        await self._session.close()

    def _url(self, text: str) -> URL:
        url = self._urls.get(text)
        if url is None:
            if len(self._urls) >= _URLS_MAX:
                self._urls.clear()
            try:
                url = URL(text, encoded=True)
            except ValueError as error:
                raise ConnectFailed("the channel's address is no URL") from error
            self._urls[text] = url
        return url

    def _timeout(self, deadlines: Deadlines) -> aiohttp.ClientTimeout:
        timeout = self._timeouts.get(deadlines)
        if timeout is None:
            if len(self._timeouts) >= _URLS_MAX:
                self._timeouts.clear()
            timeout = aiohttp.ClientTimeout(
                total=None, connect=deadlines.connect_s, sock_read=deadlines.first_byte_s
            )
            self._timeouts[deadlines] = timeout
        return timeout


class HttpAnswer:
    """An open answer of aiohttp; iterating it reads the body."""

    __slots__ = ("_content", "_cut", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, idle_s: float) -> None:
        self._response = response
        self._content = response.content
        self._cut: Exception | None = None
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            # From here on silence is measured between pieces of the body.
            connection.protocol.read_timeout = idle_s
            connection.protocol.start_timeout()

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._next()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def read(self, limit_bytes: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await self._next():
            size += len(piece)
            if size > limit_bytes:
                self.cancel()
                raise AnswerTooLarge(f"more than {limit_bytes} bytes")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cancel(self) -> None:
        self._response.close()

    async def release(self) -> None:
        """Read what is left of a finished body, so that the connection can serve again."""
        if not self._content.is_eof():
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await self._drain()
            except (TimeoutError, IdleTimeout, UpstreamCut, AnswerTooLarge):
                self.cancel()
                return
        self._response.release()

    async def _drain(self) -> None:
        size = 0
        while piece := await self._next():
            size += len(piece)
            if size > _DRAIN_BYTES_MAX:
                raise AnswerTooLarge("not worth draining")

    async def _next(self) -> bytes:
        """The next piece; empty at the end."""
        if self._cut is not None:
            raise _body_error(self._cut) from self._cut
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            rest = self._rest_before(error)
            if rest:
                self._cut = error
                return rest
            raise _body_error(error) from error

    def _rest_before(self, error: Exception) -> bytes:
        """Bytes that had come before the error: aiohttp would drop them, and they are paid for."""
        if self._response.closed and isinstance(error, RuntimeError):
            return b""
        self._content.set_exception(cast("BaseException", None))
        return self._content.read_nowait(-1)


def _open_error(
    error: Exception, attempt: _Attempt
) -> ConnectFailed | FirstByteTimeout | UpstreamCut:
    """Which of ours an error of aiohttp is. The text may name hosts: it is for the log alone."""
    text = f"{type(error).__name__}: {error}"
    if attempt.connected_s is None:
        return ConnectFailed(text)
    if isinstance(error, TimeoutError):
        return FirstByteTimeout(text)
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        # A header with a line break: refused before anything was written.
        return ConnectFailed("the request has a header that cannot be sent")
    return UpstreamCut(text, answered=False)


def _body_error(error: Exception) -> IdleTimeout | UpstreamCut:
    if isinstance(error, TimeoutError):
        return IdleTimeout("the body fell silent")
    return UpstreamCut(f"{type(error).__name__}: {error}", answered=True)
