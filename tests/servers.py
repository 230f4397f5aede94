"""A PostgreSQL server for the test session: the product's own embedded one, on real binaries."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

from backend.kit.embedded import start_parts
from backend.kit.embedded.state import read_state
from tests.embedded_site import open_folder, site_settings

REDIS_ELSEWHERE = "redis://127.0.0.1:1/0"
"""Given so that no Valkey is started: these tests need none."""


@contextmanager
def postgres_server() -> Generator[str]:
    """Yields the superuser's URL. Started from the main thread, stopped at the end."""
    with open_folder() as folder, asyncio.Runner() as runner:
        settings = site_settings(folder, redis_url=REDIS_ELSEWHERE)
        running = runner.run(start_parts(settings))
        try:
            state = read_state(settings.data_dir)
            assert state is not None
            port = urlsplit(running.parts.database_url).port
            password = quote(state.superuser_password, safe="")
            yield f"postgresql://suanpan_super:{password}@127.0.0.1:{port}/postgres"
        finally:
            runner.run(running.stop())
