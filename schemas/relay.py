"""What the relay's front (HTTP) and the code that makes the call agree on; `backend/app.py` joins
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import msgspec

from schemas.chat import ChatRequest
from schemas.identity import Reset
from schemas.ids import KeyId, RequestId
from schemas.usage import Usage


class KeyTerms(msgspec.Struct, frozen=True):
    """What a key's owner has said of it, as far as admission goes. None: no limit."""

    key: KeyId
    group: str = ""
    """Bound to this group; empty: the account's own."""
    quota_upt: int | None = None
    reset: Reset = Reset.NEVER
    concurrency: int | None = None


class Meter(Protocol):
    """What the front wants to know of a call under way. Both are quick and raise nothing."""

    def held(self, group: str) -> None:
        """The call was let in, its account being in this group."""
        ...

    def used(self, usage: Usage) -> None:
        """It ends, having used so much. Not called for a call that is released."""
        ...


class RelayCall(msgspec.Struct, frozen=True):
    """One authenticated, well-formed request. `command_id` is the hold's (an Idempotency-Key's, or
    the request's own)."""

    request_id: RequestId
    account: str
    """The account's stream."""
    key: KeyTerms
    request: ChatRequest
    command_id: UUID
    body_hash: bytes = b""
    concurrency: int | None = None
    """How many requests of the account may be under way; None: no limit."""
    meter: Meter | None = None


class WholeAnswer(msgspec.Struct, frozen=True):
    """A settled answer that was not streamed."""

    body: bytes
    points: str


class ClientStream(Protocol):
    """The client's end of a streamed answer."""

    @property
    def left(self) -> bool:
        """Has the client hung up?"""
        ...

    def on_left(self, call: Callable[[], None]) -> None:
        """Calls once when the client hangs up; at once where it has already."""
        ...

    @property
    def begun(self) -> bool:
        """Was anything sent? From then on errors are frames."""
        ...

    async def send(self, data: bytes) -> None:
        """Whole frames; the first call sends status and headers. Nothing happens once it has
        left.
        """
        ...


class ChatRelay(Protocol):
    """Runs relay calls to their settlement, whatever becomes of the client.

    Both raise SuanpanError for refusals and failures before anything was sent; afterwards `stream`
    reports them as frames. They must be awaited in a task that a hang-up does not cancel.
    """

    async def answer(self, call: RelayCall) -> WholeAnswer: ...

    async def stream(self, call: RelayCall, client: ClientStream) -> None: ...
