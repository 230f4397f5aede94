"""Server-sent events, split as they arrive; every frame keeps its bytes so it can go on unchanged.

Accepts what providers really send: `data:` without a space, CR, LF or CRLF, comments, several data
lines, frames cut anywhere between reads (WHATWG HTML §9.2, and `data:` dialects seen in the field).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024

_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_SEPARATOR_BYTES_MAX: Final = 4


class FrameTooLarge(ValueError):
    """A frame grew beyond the bound without ending: no provider sends that on purpose."""


class SseFrame(msgspec.Struct, frozen=True, gc=False):
    """One frame. `raw` ends with its blank line; `data` is None where there was no data line."""

    raw: bytes
    data: bytes | None
    event: bytes | None = None


class SseSplitter:
    """Feed it what the socket gives; it gives back whole frames and keeps the rest."""

    __slots__ = ("_frame_bytes_max", "_pending", "_scanned")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._pending = bytearray()
        self._scanned = 0
        self._frame_bytes_max = frame_bytes_max

    def feed(self, chunk: bytes) -> list[SseFrame]:
        """Frames that `chunk` completes, in order. Raises FrameTooLarge."""
        if not self._pending:
            if _is_one_plain_frame(chunk):
                return [frame_of(chunk)]
            self._scanned = 0
        self._pending += chunk
        frames = self._take_frames()
        if len(self._pending) > self._frame_bytes_max:
            raise FrameTooLarge(f"a frame of more than {self._frame_bytes_max} bytes")
        return frames

    def finish(self) -> list[SseFrame]:
        """At the end of the stream: what is left, as a frame, where its blank line is missing."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._scanned = 0
        if not rest.strip():
            return []
        return [frame_of(rest.rstrip(b"\r\n") + b"\n\n")]

    def _take_frames(self) -> list[SseFrame]:
        frames: list[SseFrame] = []
        pending = self._pending
        start = 0
        # What was searched before is not searched again, but for a separator cut in two.
        search_from = max(0, self._scanned - _SEPARATOR_BYTES_MAX)
        find = _find_any_blank_line if b"\r" in pending else _find_plain_blank_line
        while (found := find(pending, search_from)) is not None:
            at, end = found
            if at > start:
                frames.append(frame_of(bytes(pending[start:end])))
                start = end
            search_from = end
        if start:
            del pending[:start]
        self._scanned = len(pending)
        return frames


def frame_of(raw: bytes) -> SseFrame:
    """Read the lines of one whole frame."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return SseFrame(raw, raw[6:-2])
    data: list[bytes] = []
    event: bytes | None = None
    for line in _LINE_END.split(raw.removeprefix(_BYTE_ORDER_MARK)):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
    return SseFrame(raw, b"\n".join(data) if data else None, event)


def _find_any_blank_line(pending: bytearray, search_from: int) -> tuple[int, int] | None:
    match = _BLANK_LINE.search(pending, search_from)
    return None if match is None else match.span()


def _find_plain_blank_line(pending: bytearray, search_from: int) -> tuple[int, int] | None:
    """Where no CR is about, which is nearly always: ten times faster than the pattern."""
    at = pending.find(b"\n\n", search_from)
    return None if at < 0 else (at, at + 2)


def _is_one_plain_frame(chunk: bytes) -> bool:
    return chunk.find(b"\n\n") == len(chunk) - 2 > 0 and b"\r" not in chunk
