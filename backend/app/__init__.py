"""Builds a process from its roles: the only wiring place. `run` is what the commands call."""

from backend.app.roles import ROLES, run

__all__ = ["ROLES", "run"]
