"""Section: a part of the page as plain data, which the template sets in type."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsefeed.workflows.report.chart import Plot

__all__ = ["Part", "Section", "Table", "missing", "number"]


@dataclass(frozen=True)
class Table:
    """Text by rows; the first column is words, the others stand to the right unless named in `words`."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Plots or tables that stand side by side where the page is wide; folded under `summary` if it is given."""

    items: tuple[Plot | Table, ...]
    summary: str = ""


@dataclass(frozen=True)
class Section:
    """One heading of the page; without parts its text says what would fill it."""

    anchor: str
    title: str
    text: tuple[str, ...]
    parts: tuple[Part, ...] = ()


def missing(anchor: str, title: str, command: str, file: str) -> Section:
    """The section of a stage that has not run: which command writes the file it needs."""
    return Section(anchor, title, (f"Not in this run yet: `sparsefeed {command}` writes {file}.",))


def number(value: float, digits: int = 3) -> str:
    """A figure as the page writes it; a dash where it is not defined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
