"""Structured logs on stderr: one event per line, key=value or JSON, secrets masked.

Must not carry content: callers log ids and numbers.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from backend.kit.settings import LogSettings

_MASK = "[hidden]"
_SECRET_NAMES = frozenset(
    {"authorization", "cookie", "set-cookie", "api_key", "apikey", "x-api-key", "data_key"}
)
_SECRET_ENDINGS = ("password", "passwd", "secret", "_token", "-token", "credential", "private_key")
_SECRET_TEXT = re.compile(
    r"(?P<key>\bsk-)[A-Za-z0-9_-]{8,}"
    r"|(?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"
    r"|(?P<user>://[^\s/:@]*:)[^\s/@]+(?=@)",
    re.IGNORECASE,
)
_DEPTH_MAX = 4
_CHATTY = {"aiokafka": logging.CRITICAL, "psycopg.pool": logging.ERROR}
"""They repeat many times a second what our own code says once: the server is away."""


def configure_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send our logs, and those of libraries that use `logging`, to `stream` (default: stderr).

    Call once per process, before the first line; calling again replaces the earlier setting.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
        redact,
    ]
    target = stream or sys.stderr
    structlog.configure(
        processors=[*before, _renderer(settings)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                _renderer(settings),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries chat at INFO; ours is the voice that counts.
    root.setLevel(max(level, logging.WARNING))
    for name, loudest in _CHATTY.items():
        logging.getLogger(name).setLevel(loudest)


def get_logger(name: str) -> Any:
    """A logger that adds `from=name` to each line."""
    return structlog.get_logger(**{"from": name})


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Mask fields with secret-looking names, and secret-looking words in any text."""
    return {name: _clean(name, value, 0) for name, value in event.items()}


def _clean(name: str, value: object, depth: int) -> object:
    if _is_secret_name(name) and value not in (None, ""):
        return _MASK
    if isinstance(value, str):
        return _mask_text(value)
    if value is None or isinstance(value, int | float):
        return value
    if depth >= _DEPTH_MAX:
        return "…"
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {str(key): _clean(str(key), item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean("", item, depth + 1) for item in cast("Iterable[object]", value)]
    return _mask_text(str(value))


def _is_secret_name(name: str) -> bool:
    lower = name.lower()
    return lower in _SECRET_NAMES or lower.endswith(_SECRET_ENDINGS)


def _mask_text(text: str) -> str:
    return _SECRET_TEXT.sub(lambda match: (match[match.lastgroup or 0] or "") + _MASK, text)


def _one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Logfmt has no escape for CR and refuses keys with blanks: neither may break a line."""
    return {
        re.sub(r"[\s=\"]+", "_", name) or "_": (
            value.replace("\r", "\\r") if isinstance(value, str) else value
        )
        for name, value in event.items()
    }


def _renderer(settings: LogSettings) -> Processor:
    if settings.format == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False)
    order = ["at", "level", "event"]
    line = structlog.processors.LogfmtRenderer(key_order=order, bool_as_flag=False)
    return lambda logger, method, event: line(logger, method, _one_line(logger, method, event))
