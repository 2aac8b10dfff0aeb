"""Slices: where the model and the best baseline are good, and how both order the feed of one member."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import altair as alt

from sparsefeed.workflows.report.chart import Plot, Row, chart_of, draw, legend
from sparsefeed.workflows.report.plots import MODEL_COLOURS, MODEL_NAMES, MODEL_SHAPES
from sparsefeed.workflows.report.run import Metrics, Run, Slice, SliceMetrics
from sparsefeed.workflows.report.section import Part, Section, Table, missing, number

__all__ = ["auc_by_slice", "slices_section", "within_members"]

_BY = {
    "member": "impressions of the member that were trained on",
    "post": "impressions of the post that were trained on",
    "position": "position",
    "surface": "surface",
    "new_member": "whether the member was met before the held-out days",
    "new_post": "whether the post was met before the held-out days",
}


def slices_section(run: Run) -> Section:
    """AUC by slice as plots, and every figure of the slices in folded tables."""
    anchor, title = "slices", "Quality by slice"
    evaluation = run.evaluation
    if evaluation is None or not evaluation.slices:
        return missing(anchor, title, "eval", "evaluation.json with slices")
    names = [MODEL_NAMES[model] for model in evaluation.compared]
    text = [
        f"{names[0]} beside {names[1]}, the baseline of the greatest mean AUC, on the same impressions: by how many of "
        "the training impressions were of the same member or post, by position, by surface, and by whether the member "
        "or post was met before the held-out days. An id that was not admitted shares its row, and is known by it "
        "alone. A point is a response, the line is their mean.",
    ]
    drawn = tuple(auc_by_slice(by, parts, evaluation.compared) for by, parts in evaluation.slices.items())
    tables = tuple(_table(by, parts, evaluation.compared) for by, parts in evaluation.slices.items())
    return Section(anchor, title, tuple(text), (Part(drawn), Part(tables, "Every slice")))


def auc_by_slice(by: str, parts: Mapping[str, Slice], compared: Sequence[str]) -> Plot:
    """AUC in every slice: a point for every response, a line through their means, a colour for each model."""
    names = [MODEL_NAMES[model] for model in compared]
    points: list[Row] = []
    means: list[Row] = []
    for slice_, part in parts.items():
        for model, name in zip(compared, names, strict=True):
            auc = {response: models[model].best_known.auc for response, models in part.responses.items()}
            auc = {response: value for response, value in auc.items() if math.isfinite(value)}
            points += [{"slice": slice_, "model": name, "response": r, "AUC": value} for r, value in auc.items()]
            if auc:
                means.append({"slice": slice_, "model": name, "AUC": fmean(auc.values())})
    x = alt.X("slice:N", sort=list(parts), title=_BY.get(by, by), axis=alt.Axis(labelAngle=0))
    y = alt.Y("AUC:Q", scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=6))
    colour = alt.Color("model:N", scale=legend(names, [MODEL_COLOURS[name] for name in names]), sort=names)
    shape = alt.Shape("model:N", scale=legend(names, [MODEL_SHAPES[name] for name in names]), sort=names)
    aside = alt.XOffset("model:N", sort=names, scale=alt.Scale(paddingOuter=1))
    lines = chart_of(means).mark_line().encode(x, y, colour, aside)
    marks = chart_of(points).mark_point(filled=True, size=50, opacity=0.7)
    chart = lines + marks.encode(x, y, colour, shape, aside, detail="response:N")
    words = "; ".join(f"{row['slice']}, {row['model']}: {row['AUC']:.3f}" for row in means)
    return draw(chart, f"slices-{by}", f"AUC by {by.replace('_', ' ')}", f"Mean AUC by {_BY.get(by, by)}: {words}")


def _table(by: str, parts: Mapping[str, Slice], compared: Sequence[str]) -> Table:
    def pair(models: Mapping[str, SliceMetrics], metric: str, digits: int) -> str:
        return " / ".join(number(getattr(models[model], metric), digits) for model in compared)

    rows = []
    for slice_, part in parts.items():
        for response, models in part.responses.items():
            known = {model: quality.best_known for model, quality in models.items()}
            figures = (pair(known, "auc", 3), pair(known, "log_loss", 4), pair(known, "predicted_over_actual", 2))
            rows.append((slice_, f"{part.num_rows:,}", response, *figures))
    by = by.replace("_", " ")
    title = f"By {by}: {' / '.join(MODEL_NAMES[model] for model in compared)}"
    heads = (by, "impressions", "response", "AUC", "log loss", "pred. / actual")
    return Table(title, heads, tuple(rows), ("response",))


def within_members(measured: Mapping[str, Mapping[str, Metrics]]) -> tuple[Table, ...]:
    """AUC and NDCG within members, a row per model; none where none is known."""
    models = list(next(iter(measured.values())))
    tables = []
    for title, metric in (("AUC within members", "grouped_auc"), ("NDCG within members", "ndcg")):
        figures = {model: [getattr(of[model], metric) for of in measured.values()] for model in models}
        if any(math.isfinite(value) for values in figures.values() for value in values):
            rows = ((MODEL_NAMES[m], *(number(value, 4) for value in v)) for m, v in figures.items())
            tables.append(Table(title, ("model", *measured), tuple(rows)))
    return tuple(tables)
