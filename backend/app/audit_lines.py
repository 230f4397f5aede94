"""What is said between the site and an audit that runs in a process of its own."""

from __future__ import annotations

import msgspec


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of JSON on stdin. Holds a password: never an argument, which others can see."""

    database_url: str
    data_dir: str
    bootstrap: str | None
    since_seal: bool


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of JSON on stdout: progress, a note, the report, or why there is none."""

    phase: str = ""
    done: int = 0
    total: int = 0
    note: str | None = None
    report: msgspec.Raw = msgspec.Raw()
    error: str | None = None
