"""The `suanpan` command: what an operator types. It shows and asks; others decide."""

from backend.cli.root import main

__all__ = ["main"]
