"""PostgreSQL and Valkey run by ourselves, for a machine that has neither."""

from backend.kit.embedded.supervisor import (
    Parts,
    RunningParts,
    outside_parts,
    running_parts,
    start_parts,
)

__all__ = ["Parts", "RunningParts", "outside_parts", "running_parts", "start_parts"]
