"""Plots: what each section draws of a run. Every function takes records and gives drawn SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from sparsefeed.workflows.report.chart import (
    BLUE,
    GREEN,
    GREY,
    HUES,
    PALE,
    VERMILION,
    Plot,
    Row,
    chart_of,
    draw,
    legend,
    log_axis,
    unit_rule,
)
from sparsefeed.workflows.report.run import CurvePoint, Etl, Load, Metrics, Quality, RankedPost, StoredTable

__all__ = [
    "MODEL_COLOURS",
    "MODEL_NAMES",
    "MODEL_SHAPES",
    "calibration",
    "feed_order",
    "id_rows",
    "latency_by_load",
    "latency_by_step",
    "learning_curve",
    "models_compared",
    "response_rates",
    "score_parts",
    "table_memory",
]

MODEL_NAMES = {
    "ips": "IPS weights",
    "none": "no weights",
    "lightgbm": "LightGBM, no ids",
    "constant": "constant",
    "lightgbm_ids": "LightGBM, ids encoded",
    "logistic": "logistic",
    "mlp": "MLP, no ids",
}
_COLOURS = (BLUE, VERMILION, GREEN, GREY, *HUES[3:])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
MODEL_COLOURS = dict(zip(MODEL_NAMES.values(), _COLOURS, strict=True))
MODEL_SHAPES = dict(zip(MODEL_NAMES.values(), _SHAPES, strict=True))


def response_rates(rates: Mapping[str, tuple[float, float]]) -> Plot:
    """Share of impressions with each response: (random, production) sessions."""
    rows: list[Row] = [
        {"response": response, "sessions": sessions, "rate": rate}
        for response, pair in rates.items()
        for sessions, rate in zip(("random", "production"), pair, strict=True)
        if rate > 0
    ]
    scale, ticks = log_axis([row["rate"] for row in rows], (0.1, 0.1))
    base = chart_of(rows).encode(
        y=alt.Y("response:N", sort=list(rates), title=None),
        x=alt.X("rate:Q", scale=scale, title="share of impressions", axis=alt.Axis(values=ticks, format="~%")),
    )
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        color=alt.Color("sessions:N", scale=legend(("random", "production"), (BLUE, VERMILION))),
        shape=alt.Shape("sessions:N", scale=legend(("random", "production"), ("circle", "square"))),
    )
    words = (f"{r}: {random:.2%} random, {production:.2%} production" for r, (random, production) in rates.items())
    chart = base.mark_line(color="#bbb").encode(detail="response:N") + dots
    return draw(chart, "rates", "Responses by kind of session", "; ".join(words), _height(len(rates)))


def id_rows(etl: Etl) -> Plot:
    """Rows of every table: of admitted ids, shared (padding, null, tail), and free."""
    kinds = ("one id each", "shared by rare ids", "free")
    rows = []
    for table, capacity in etl.capacity_rows.items():
        ids, used = etl.num_ids[table], etl.num_rows[table]
        parts = zip(kinds, (ids, used - ids, capacity - used), strict=True)
        rows += [{"table": table, "kind": kind, "order": i, "rows": n} for i, (kind, n) in enumerate(parts)]
    chart = (
        chart_of(rows)
        .mark_bar()
        .encode(
            y=alt.Y("table:N", sort=list(etl.capacity_rows), title=None),
            x=alt.X("rows:Q", title="rows of the table", axis=alt.Axis(format="~s", tickCount=6)),
            color=alt.Color("kind:N", scale=legend(kinds, (BLUE, "#E69F00", "#d9d9d9"))),
            order="order:Q",
        )
    )
    words = (f"{table}: {etl.num_ids[table]:,} ids in {n:,} rows" for table, n in etl.capacity_rows.items())
    return draw(chart, "ids", "Rows of the tables", "; ".join(words), _height(len(etl.capacity_rows)))


def learning_curve(response: str, curves: Mapping[str, Sequence[CurvePoint]], number: int) -> Plot:
    """Training loss of one response as a share of where it began, by weights; the legend has the loss itself."""
    names = {
        weights: f"{MODEL_NAMES[weights]}: {curve[0].loss[response]:.4f} to {curve[-1].loss[response]:.4f}"
        for weights, curve in curves.items()
    }
    rows = [
        {"samples": point.samples, "share": point.loss[response] / curve[0].loss[response], "model": names[weights]}
        for weights, curve in curves.items()
        for point in curve
    ]
    colours = [MODEL_COLOURS[MODEL_NAMES[weights]] for weights in curves]
    chart = (
        chart_of(rows)
        .mark_line(point=_points(max(len(curve) for curve in curves.values())))
        .encode(
            x=alt.X("samples:Q", title="impressions trained on", axis=alt.Axis(format="~s", tickCount=6)),
            y=alt.Y("share:Q", title="loss / first loss", scale=alt.Scale(zero=False), axis=alt.Axis(format="~%")),
            color=alt.Color("model:N", scale=legend(list(names.values()), colours)),
        )
    )
    return draw(chart, f"curve-{number}", response, f"Training loss of {response}. " + "; ".join(names.values()))


def models_compared(measured: Mapping[str, Mapping[str, Metrics]]) -> tuple[Plot, Plot]:
    """Predicted / actual and AUC of every model, a line per response; `measured` is response -> model -> metrics."""
    named = [
        {"response": response, "model": MODEL_NAMES.get(model, model), **metrics.model_dump()}
        for response, models in measured.items()
        for model, metrics in models.items()
    ]

    def dots(metric: str, label: str, scale: Any, axis: Any, below: Sequence[Any]) -> Plot:
        rows = [{k: row[k] for k in ("response", "model", metric)} for row in named if math.isfinite(row[metric])]
        names = list(dict.fromkeys(row["model"] for row in rows))
        columns = 4 if len(names) <= 4 else 3  # the longer names come with the fifth
        key = alt.Legend(columns=columns)
        marks = (
            chart_of(rows)
            .mark_point(filled=True, size=80, opacity=1)
            .encode(
                y=alt.Y("response:N", sort=list(measured), title=None, axis=alt.Axis(grid=True)),
                # A lane each, for models of one quality would hide each other.
                yOffset=alt.YOffset("model:N", sort=names),
                x=alt.X(f"{metric}:Q", title=label, scale=scale, axis=axis),
                color=alt.Color(
                    "model:N", scale=legend(names, [MODEL_COLOURS.get(n, GREY) for n in names]), sort=names, legend=key
                ),
                shape=alt.Shape(
                    "model:N", scale=legend(names, [MODEL_SHAPES.get(n, "cross") for n in names]), legend=key
                ),
            )
        )
        words = (f"{row['response']}, {row['model']}: {row[metric]:.3f}" for row in rows)
        chart = alt.layer(*below, marks)
        name = metric.replace("_", "-")
        height = _height(len(measured), line=44, legend_rows=-(-len(names) // columns))
        return draw(chart, name, label, f"{label}: " + "; ".join(words), height)

    ratios = [row["predicted_over_actual"] for row in named if row["predicted_over_actual"] > 0]
    scale, ticks = log_axis(ratios, (0.9, 1.1))
    return (
        dots(
            "predicted_over_actual", "predicted / actual", scale, alt.Axis(values=ticks, format="~g"), [unit_rule("x")]
        ),
        dots("auc", "AUC", alt.Scale(zero=False, padding=8), alt.Axis(tickCount=6), []),
    )


def calibration(response: str, models: Mapping[str, Quality], number: int) -> Plot:
    """Actual against predicted rate by decile of the prediction; the diagonal is right."""
    rows: list[Row] = [
        {"predicted": predicted, "actual": actual, "model": MODEL_NAMES[model]}
        for model, quality in models.items()
        if model in ("ips", "none", "lightgbm")
        for predicted, actual in zip(quality.curve.predicted, quality.curve.actual, strict=True)
    ]
    names = list(dict.fromkeys(row["model"] for row in rows))
    end = 1.05 * max((max(row["predicted"], row["actual"]) for row in rows), default=1.0)
    axis = alt.Axis(format="~%", tickCount=5)
    scale = alt.Scale(domain=[0, end], nice=False)
    diagonal = (
        chart_of([{"predicted": 0, "actual": 0}, {"predicted": end, "actual": end}])
        .mark_line(color="#888", strokeDash=[2, 3])
        .encode(x=alt.X("predicted:Q"), y=alt.Y("actual:Q"))
    )
    lines = (
        chart_of(rows)
        .mark_line(point={"filled": True, "size": 36})
        .encode(
            x=alt.X("predicted:Q", title="predicted rate", scale=scale, axis=axis),
            y=alt.Y("actual:Q", title="actual rate", scale=scale, axis=axis),
            color=alt.Color("model:N", scale=legend(names, [MODEL_COLOURS[n] for n in names])),
            order="predicted:Q",
        )
    )
    tops = {row["model"]: row for row in rows}  # the last row of each model is its highest decile
    words = (f"{name}: {row['predicted']:.1%} predicted, {row['actual']:.1%} actual" for name, row in tops.items())
    label = f"Calibration of {response}, highest decile. " + "; ".join(words)
    return draw(diagonal + lines, f"calibration-{number}", response, label)


def latency_by_step(loads: Sequence[Load]) -> Plot:
    """Mean time of a request by step, waiting apart from computing."""
    steps = [step.step for step in loads[0].steps]
    kinds = [*(f"{step} waits" for step in steps), *steps]
    colours = [*PALE[: len(steps)], *HUES]
    rows: list[Row] = []
    for load in loads:
        for step in load.steps:
            for kind, ms in ((f"{step.step} waits", step.queue_ms), (step.step, step.compute_ms)):
                rows.append({"load": load.name, "kind": kind, "ms": ms, "order": len(rows)})
    chart = (
        chart_of(rows)
        .mark_bar()
        .encode(
            y=_loads_axis(loads),
            x=alt.X("ms:Q", title="mean milliseconds per request", axis=alt.Axis(tickCount=6)),
            color=alt.Color("kind:N", scale=legend(kinds, colours), legend=alt.Legend(orient="bottom", columns=3)),
            order="order:Q",
        )
    )
    words = (
        f"{load.name}: "
        + ", ".join(f"{s.step} {s.compute_ms:.2f} ms after waiting {s.queue_ms:.2f} ms" for s in load.steps)
        for load in loads
    )
    return draw(chart, "steps", "Where the time goes", "; ".join(words), _height(len(loads), legend_rows=2))


def latency_by_load(loads: Sequence[Load]) -> Plot:
    """p50, p95 and p99 as clients saw them."""
    percentiles = {"p50": BLUE, "p95": "#E69F00", "p99": VERMILION}
    colours = legend(list(percentiles), list(percentiles.values()))
    shapes = ("circle", "diamond", "square")
    rows = [{"load": load.name, "percentile": p, "ms": getattr(load, f"{p}_ms")} for load in loads for p in percentiles]
    base = chart_of(rows).encode(
        y=_loads_axis(loads),
        x=alt.X("ms:Q", title="milliseconds", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=6)),
    )
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        color=alt.Color("percentile:N", scale=colours, legend=alt.Legend(orient="bottom")),
        shape=alt.Shape("percentile:N", scale=legend(list(percentiles), shapes)),
    )
    words = (f"{load.name}: p50 {load.p50_ms:.2f}, p95 {load.p95_ms:.2f}, p99 {load.p99_ms:.2f} ms" for load in loads)
    chart = base.mark_line(color="#bbb").encode(detail="load:N") + dots
    return draw(chart, "loads", "What clients see", "; ".join(words), _height(len(loads)))


def table_memory(tables: Sequence[StoredTable]) -> Plot:
    """Bytes of every table as fp32 and as int8 rows."""
    rows = [
        {"table": table.name, "rows": kind, "megabytes": num_bytes / 1e6}
        for table in tables
        for kind, num_bytes in (("fp32", table.bytes_fp32), ("int8", table.bytes_int8))
    ]
    chart = (
        chart_of(rows)
        .mark_bar()
        .encode(
            y=alt.Y("table:N", sort=[table.name for table in tables], title=None),
            yOffset=alt.YOffset("rows:N", sort=["fp32", "int8"]),
            x=alt.X("megabytes:Q", title="megabytes", axis=alt.Axis(tickCount=6)),
            color=alt.Color("rows:N", scale=legend(("fp32", "int8"), (GREY, BLUE))),
        )
    )
    words = (f"{t.name}: {t.bytes_fp32:,} bytes as fp32, {t.bytes_int8:,} as int8" for t in tables)
    return draw(chart, "memory", "Tables as fp32 and as int8 rows", "; ".join(words), _height(len(tables)))


def feed_order(posts: Sequence[RankedPost]) -> Plot:
    """Each post's place before and after, joined by a line."""
    ways = ("up", "kept", "down")
    rows: list[Row] = []
    for post in posts:
        way = ways[1 + (post.after > post.before) - (post.after < post.before)]
        rows += [
            {"post": post.post, "side": side, "place": place, "way": way, "text": text}
            for side, place, text in (
                ("as shown", post.before, f"{_short(post.post)} · {post.before}"),
                ("as ranked", post.after, f"{post.after} · {_short(post.post)}"),
            )
        ]
    x = alt.X(
        "side:O",
        sort=["as shown", "as ranked"],
        title=None,
        scale=alt.Scale(type="point", padding=1.25),
        axis=alt.Axis(orient="top", labelAngle=0, domain=False, ticks=False),
    )
    places = [1, max(max(post.before, post.after) for post in posts)]
    y = alt.Y("place:Q", axis=None, scale=alt.Scale(reverse=True, domain=places, padding=10, nice=False, zero=False))
    colour = alt.Color("way:N", scale=legend(ways, (BLUE, GREY, VERMILION)))
    base = chart_of(rows)
    lines = base.mark_line(strokeWidth=2, point={"filled": True, "size": 40}).encode(
        x=x, y=y, color=colour, detail="post:N"
    )
    chart = lines
    for side, align, dx in (("as shown", "right", -9), ("as ranked", "left", 9)):
        text = chart_of([row for row in rows if row["side"] == side]).mark_text(align=align, dx=dx, fontSize=13)
        chart = chart + text.encode(x=x, y=y, text="text:N")
    ordered = sorted(posts, key=lambda post: post.after)
    label = "As ranked: " + "; ".join(f"{p.after}. {p.post}, before {p.before}" for p in ordered)
    return draw(chart, "feed", "Place of each post", label, _height(len(posts)))


def score_parts(posts: Sequence[RankedPost], score_weights: Mapping[str, float]) -> Plot:
    """What each response gives to each post's score: probability * score weight, in the ranked order."""
    ordered = sorted(posts, key=lambda post: post.after)
    names = {post.post: f"{post.after} · {_short(post.post)}" for post in ordered}
    rows = [
        {"post": names[post.post], "response": response, "part": post.probability[response] * weight, "order": i}
        for post in ordered
        for i, (response, weight) in enumerate(score_weights.items())
    ]
    chart = (
        chart_of(rows)
        .mark_bar()
        .encode(
            y=alt.Y("post:N", sort=list(names.values()), title=None),
            x=alt.X("part:Q", title="score", axis=alt.Axis(tickCount=6)),
            color=alt.Color("response:N", scale=legend(list(score_weights), HUES)),
            order="order:Q",
        )
    )
    label = "Scores: " + "; ".join(f"{post.post} {post.score:.3f}" for post in ordered)
    return draw(chart, "score", "What the score is made of", label, _height(len(posts)))


def _points(num_points: int) -> Any:
    # A line through many points needs none of them marked.
    return {"filled": True, "size": 36} if num_points <= 30 else False


def _loads_axis(loads: Sequence[Load]) -> Any:
    return alt.Y("load:N", sort=[load.name for load in loads], title=None)


def _height(num_lines: int, legend_rows: int = 1, line: int = 30) -> int:
    return 70 + line * num_lines + 20 * legend_rows


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"
