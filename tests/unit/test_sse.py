"""The splitter: any dialect, any cut, the same bytes out as in."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers.sse import FrameTooLarge, SseFrame, SseSplitter

PLAIN = b'data: {"a":1}\n\ndata: [DONE]\n\n'


def split(*chunks: bytes) -> list[SseFrame]:
    splitter = SseSplitter()
    frames = [frame for chunk in chunks for frame in splitter.feed(chunk)]
    return frames + splitter.finish()


@pytest.mark.parametrize(
    ("raw", "data", "event"),
    [
        (b"data: x\n\n", b"x", None),
        (b"data:x\n\n", b"x", None),
        (b"data:  x\n\n", b" x", None),
        (b"data: x\r\n\r\n", b"x", None),
        (b"data: x\r\r", b"x", None),
        (b"data: a\ndata: b\n\n", b"a\nb", None),
        (b": keep-alive\n\n", None, None),
        (b":HTTP_STATUS/200\n\n", None, None),
        (b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:{}\n\n", b"{}", b"result"),
        (b"event: error\r\ndata: {}\r\n\r\n", b"{}", b"error"),
        (b"data\n\n", b"", None),
        (b"data:\n\n", b"", None),
        (b"\xef\xbb\xbfdata: x\n\n", b"x", None),
        (b"retry: 10\n\n", None, None),
    ],
)
def test_dialects_are_read(raw: bytes, data: bytes | None, event: bytes | None) -> None:
    assert split(raw) == [SseFrame(raw, data, event)]


@pytest.mark.parametrize(
    "stream",
    [
        PLAIN,
        PLAIN.replace(b"\n", b"\r\n"),
        PLAIN.replace(b"\n", b"\r"),
        b": hi\n\n\n\nevent: e\ndata: a\ndata:b\r\n\r\ndata: c\n\n",
    ],
)
def test_frames_are_the_same_wherever_the_stream_is_cut(stream: bytes) -> None:
    whole = [frame.data for frame in split(stream)]
    for first in range(len(stream)):
        for second in range(first, len(stream)):
            parts = split(stream[:first], stream[first:second], stream[second:])
            assert [frame.data for frame in parts] == whole, (first, second)
            # A CR ends the line at once; the LF of a pair cut in two is an empty line at the end.
            assert b"".join(frame.raw for frame in parts) in (stream, stream.removesuffix(b"\n"))


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b"data:y", b":c", b"z"])))
def test_no_byte_is_lost_or_changed(pieces: list[bytes]) -> None:
    splitter = SseSplitter()
    raw = b"".join(frame.raw for piece in pieces for frame in splitter.feed(piece))
    assert b"".join(pieces).startswith(raw)


def test_a_last_frame_without_its_blank_line_is_given_at_the_end() -> None:
    assert [frame.data for frame in split(b"data: a\n\ndata: [DONE]")] == [b"a", b"[DONE]"]
    assert split(b"data: [DONE]\r\n")[0].raw == b"data: [DONE]\n\n"
    assert split(b"data: a\n\n\n") == [SseFrame(b"data: a\n\n", b"a")]


def test_a_frame_that_never_ends_is_refused() -> None:
    splitter = SseSplitter(frame_bytes_max=1_000)
    splitter.feed(b"data: " + b"x" * 900)
    with pytest.raises(FrameTooLarge):
        splitter.feed(b"x" * 200)


def test_a_large_frame_in_small_reads_does_not_cost_quadratic_time() -> None:
    def cost_s(size: int) -> float:
        splitter = SseSplitter()
        started = time.process_time()
        splitter.feed(b"data: ")
        for _ in range(size // 1_000):
            splitter.feed(b"x" * 1_000)
        assert len(splitter.feed(b"\n\n")) == 1
        return time.process_time() - started

    small, large = min(cost_s(500_000) for _ in range(3)), cost_s(4_000_000)
    assert large < 40 * small + 0.05
