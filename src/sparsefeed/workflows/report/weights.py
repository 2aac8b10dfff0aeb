"""Weights: what the plot of the IPS weights shows, of which surfaces."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from sparsefeed.workflows.report.chart import HUES, Plot, Row, chart_of, draw, legend, log_axis, unit_rule
from sparsefeed.workflows.report.run import IpsCell

__all__ = ["busiest_surfaces", "ips_weights"]

_MARKS = ("cross", "triangle-down", "diamond", "square", "triangle-up")  # of weights that are none


def ips_weights(response: str, cells: Sequence[IpsCell], number: int) -> Plot:
    """Weight by position of one response with the 95 % bounds of its ratio: a colour per surface, a dash per y.

    A position that could not be weighted is marked at 1, with its reason in the legend, a weight of 0 at the foot of
    the axis; where a rate is 0 there are no bounds.
    """
    surfaces = busiest_surfaces(cells)
    drawn = [c for c in cells if c.surface in surfaces]
    lines = [c for c in drawn if c.reason == "" and c.weight > 0]
    bars = [c for c in lines if c.low is not None and c.high is not None]
    scale, ticks = log_axis([w for c in lines for w in (c.weight, c.low or c.weight, c.high or c.weight)], (0.5, 1.0))
    foot = scale.to_dict()["domain"][0]
    marked = [(c, f"{c.reason}: 1", 1.0) for c in drawn if c.reason and c.y == 1]
    marked += [(c, "weight 0", foot) for c in drawn if c.reason == "" and c.weight == 0]
    kinds = list(dict.fromkeys(kind for _, kind, _ in marked))
    x = alt.X(
        "position:Q",
        title="position",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(nice=False, zero=False, padding=16),
    )
    y = alt.Y("weight:Q", scale=scale, title="weight", axis=alt.Axis(values=ticks, format="~g"))
    colour = alt.Color("surface:N", scale=legend(surfaces, HUES), legend=alt.Legend(symbolOpacity=1))
    dash = alt.StrokeDash("y:N", scale=alt.Scale(domain=["y = 1", "y = 0"], range=[[1, 0], [4, 3]]), legend=None)
    layers = [unit_rule("y")]
    for i, surface in enumerate(surfaces):
        # Aside by some pixels, or bars of surfaces would hide each other.
        aside = {"xOffset": min(5, 15 / len(surfaces)) * (i - (len(surfaces) - 1) / 2)}
        line_rows = [_row(c, c.weight) for c in lines if c.surface == surface]
        bar_rows = [{**_row(c, c.low), "high": c.high} for c in bars if c.surface == surface]
        layers += [
            chart_of(bar_rows).mark_rule(strokeWidth=1.5, opacity=0.55, **aside).encode(x, y, alt.Y2("high:Q"), colour),
            chart_of(line_rows).mark_line(**aside).encode(x, y, colour, dash),
            chart_of(line_rows).mark_point(filled=True, size=36, opacity=1, **aside).encode(x, y, colour),
        ]
        if here := [{**_row(c, at), "kind": kind} for c, kind, at in marked if c.surface == surface]:
            shape = alt.Shape("kind:N", scale=legend(kinds, _MARKS), legend=alt.Legend(orient="bottom", columns=2))
            layers.append(
                chart_of(here).mark_point(filled=True, size=90, opacity=1, **aside).encode(x, y, colour, shape)
            )
    title = f"{response} (solid: y = 1, dashed: y = 0; bars: 95 % bounds)"
    return draw(alt.layer(*layers), f"ips-{number}", title, _in_words(response, cells, bars))


def _row(cell: IpsCell, weight: float | None) -> Row:
    return {"position": cell.position, "weight": weight, "surface": cell.surface, "y": f"y = {cell.y}"}


def _in_words(response: str, cells: Sequence[IpsCell], bars: Sequence[IpsCell]) -> str:
    words = [
        f"y = {y} from {min(w):.2f} to {max(w):.2f}" for y in (1, 0) if (w := [c.weight for c in cells if c.y == y])
    ]
    if bars:
        widest = max(bars, key=lambda c: (c.high or 1.0) / (c.low or 1.0))
        where = f"{widest.surface}, position {widest.position}, y = {widest.y}"
        words.append(f"the widest 95 % bounds are {widest.low:.2f} to {widest.high:.2f} at {where}")
    words += [f"{c.surface}, position {c.position}: {c.reason}, weight 1" for c in cells if c.reason and c.y == 1]
    return f"Weights of {response} by position: " + "; ".join(words)


def busiest_surfaces(cells: Sequence[IpsCell]) -> list[str]:
    """The surfaces with the most impressions, as many as there are colours; by name."""
    impressions: dict[str, int] = {}
    for cell in cells:
        impressions[cell.surface] = impressions.get(cell.surface, 0) + cell.num_random + cell.num_production
    return sorted(sorted(impressions, key=lambda s: -impressions[s])[: len(HUES)])
