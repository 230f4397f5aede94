#!/usr/bin/env python3
"""Writes .env for docker-compose.yaml: deploy/env.example with a fresh secret in each empty place.

Standard library only; never overwrites a file, because its secrets open the existing data.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
import uuid
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent


def fresh_value(name: str) -> str:
    """Letters and digits only, so that it may stand in a URL unescaped."""
    if name == "KAFKA_CLUSTER_ID":
        # Kafka wants a UUID in base64url without padding; a leading dash would read as an option.
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        return text if text[0] not in "-_" else f"A{text[1:]}"
    return secrets.token_hex(32)


def filled(example: str) -> str:
    lines = [
        f"{line}{fresh_value(line[:-1])}" if line.endswith("=") and line[0] != "#" else line
        for line in example.splitlines()
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    target = Path(arguments[0]) if arguments else DEPLOY.parent / ".env"
    text = filled((DEPLOY / "env.example").read_text("utf-8"))
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{target} exists; its secrets open the existing data, so it stays.", file=sys.stderr)
        return 1
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"wrote {target}; next: docker compose up --build --detach --wait")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
