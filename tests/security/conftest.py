"""What our logs say during a test."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import structlog

from backend.kit.logs import configure_logs
from backend.kit.settings import LogSettings


class _Ear(io.TextIOBase):
    """A logger keeps the stream of its first line for good: so this one stays, and passes on."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def write(self, text: str, /) -> int:
        return self.stream.write(text)


_EAR = _Ear()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that our logs and the libraries' say meanwhile."""
    _EAR.stream = io.StringIO()
    configure_logs(LogSettings(level="debug"), _EAR)  # pyright: ignore[reportArgumentType]
    yield _EAR.stream
    structlog.reset_defaults()
