"""Chart: an altair chart drawn as SVG that can stand in a page beside others.

Notable: no JavaScript, no font and nothing of the network is in it; its text is in a font whose letters
are as wide as those it was laid out with, and its fragment ids are made its own.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "HUES",
    "PALE",
    "VERMILION",
    "Plot",
    "Row",
    "chart_of",
    "draw",
    "legend",
    "log_axis",
    "unit_rule",
]

Row = dict[str, Any]

# Okabe and Ito (2008): told apart under every common colour blindness, and in print by lightness.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
HUES = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
PALE = ("#99C7E0", "#EEBF99", "#99D8C7")  # the first three, for a part of what they stand for

WIDTH, HEIGHT = 470, 280  # of a whole plot: two stand side by side in the page, one fits a phone at two thirds
_FONT = "Helvetica, Arial, sans-serif"
_INK, _RULE = "#222", "#e4e4e4"
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)([\w-]+)')


@dataclass(frozen=True)
class Plot:
    """A drawn chart.

    Attributes:
        title: what stands above it.
        label: what it shows, in words, for those who do not see it.
        svg: one `<svg>` element.
    """

    title: str
    label: str
    svg: str


def draw(chart: Any, name: str, title: str, label: str, height: int = HEIGHT) -> Plot:
    """Lay a chart out in a box of WIDTH x `height` pixels; equal charts give equal SVG.

    Args:
        chart: a single or layered altair chart.
        name: unique in the page; letters, digits and hyphens.
        title: of the plot.
        label: its text alternative.
        height: in pixels.
    """
    chart = chart.properties(width=WIDTH, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
    chart = chart.configure(font=_FONT, background="transparent", padding=2)
    chart = chart.configure_view(stroke=None)
    chart = chart.configure_axis(
        gridColor=_RULE, domainColor="#888", tickColor="#888", labelColor=_INK, titleColor=_INK,
        labelFontSize=13, titleFontSize=13, titleFontWeight="normal", labelLimit=220,
    )  # fmt: skip
    chart = chart.configure_legend(
        orient="top",
        title=None,
        labelFontSize=13,
        labelColor=_INK,
        labelLimit=300,
        columnPadding=14,
        symbolStrokeWidth=2.5,
    )
    out = io.StringIO()
    chart.save(out, format="svg")
    # Fragment ids count on from SVG to SVG of a process: neither the page's own nor the same twice.
    numbers: dict[str, int] = {}
    svg = _REFERENCE.sub(lambda m: f"{m[1]}{name}-{numbers.setdefault(m[2], len(numbers))}", out.getvalue())
    return Plot(title, label, svg)


def chart_of(rows: Sequence[Row]) -> Any:
    """A chart of rows without marks yet; a row with a number that is not finite is left out."""
    # Plain lists, so that no data frame library is needed.
    finite = [row for row in rows if all(math.isfinite(value) for value in row.values() if isinstance(value, float))]
    return alt.Chart(alt.Data(values=finite))


def unit_rule(axis: str) -> Any:
    """A thin dotted line where the axis ("x" or "y") is 1."""
    where: dict[str, Any] = {axis: alt.datum(1)}
    return alt.Chart(alt.Data(values=[{}])).mark_rule(color="#888", strokeDash=[2, 3]).encode(**where)


def legend(names: Sequence[str], colours: Sequence[str]) -> Any:
    """A colour scale over exactly these names, in this order."""
    return alt.Scale(domain=list(names), range=list(colours)[: len(names)])


def log_axis(values: Sequence[float], at_least: tuple[float, float] = (1.0, 1.0)) -> tuple[Any, list[float]]:
    """A logarithmic scale that holds all values and the span `at_least`, and its round tick values."""
    low, high = min((*values, at_least[0])) / 1.08, max((*values, at_least[1])) * 1.08
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        # Through text, so that 3 * 10^-1 is 0.3.
        ticks = [tick for d in decades for s in steps if low <= (tick := float(f"{s}e{d}")) <= high]
        if len(ticks) <= 8:
            break
    return alt.Scale(type="log", domain=[low, high], nice=False), ticks
