"""The page that says what is running, in the visitor's language. Text from `status.json`."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template
from typing import Any, Final

_FOLDER: Final = resources.files("backend.http.pages")
_PAGE: Final = Template((_FOLDER / "status.html").read_text("utf-8"))
_TEXTS: Final[dict[str, dict[str, str]]] = json.loads((_FOLDER / "status.json").read_text("utf-8"))
MODELS_SHOWN_MAX: Final = 50


def language_of(accept_language: str) -> str:
    """`zh-CN` or `en`: the first of ours that Accept-Language names."""
    for part in accept_language.lower().split(","):
        tag = part.split(";")[0].strip()
        if tag.startswith("zh"):
            return "zh-CN"
        if tag.startswith("en"):
            return "en"
    return "en"


def status_page(
    accept_language: str, status: str, parts: dict[str, Any], models: tuple[str, ...]
) -> str:
    """The whole page; every value is escaped."""
    language = language_of(accept_language)
    texts = _TEXTS[language]
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_said(value))}</td></tr>"
        for name, value in parts.items()
    )
    shown = "".join(
        f"<li><code>{html.escape(name)}</code></li>" for name in models[:MODELS_SHOWN_MAX]
    )
    state = texts["ready"] if status == "ready" else texts["not_ready"]
    return _PAGE.substitute(texts, language=language, state=state, rows=rows, models=shown)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
