"""Background tasks a process cannot do without: one that dies of a defect ends the process.

A dead writer or sweeper would leave a site that answers and does nothing; a restart is better.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

import structlog

_log = structlog.get_logger("kit.tasks")
_died: Final[list[str]] = []


def vital(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Runs `work` in a task; should it raise, logs why and asks this process to stop (SIGTERM)."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_ended)
    return task


def died() -> tuple[str, ...]:
    """Names of vital tasks that died in this process: its exit status is a failure then."""
    return tuple(_died)


async def ended(*tasks: asyncio.Task[None] | None) -> None:
    """Cancels tasks and waits until they are over."""
    living = [task for task in tasks if task is not None]
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)


def _ended(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _log.critical("vital task died", task=task.get_name(), exc_info=error)
        _died.append(task.get_name())
        os.kill(os.getpid(), signal.SIGTERM)
