"""How long work tells where it is: one callable, so that no layer below the CLI prints."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

# (units done, units in all, what is being done)
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """Tell nobody."""
