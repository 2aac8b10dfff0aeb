"""Days: what the loop's days gave and took, one beside the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sparsefeed.workflows.loop import LoopDay
from sparsefeed.workflows.report.chart import BLUE, GREY, HUES, VERMILION, Plot, Row, chart_of, draw, legend, log_axis
from sparsefeed.workflows.report.run import Run
from sparsefeed.workflows.report.section import Part, Section, Table, number

__all__ = ["days_section"]

_STEPS = {
    "ETL and judging": "etl_s",
    "a new base": "retrain_s",
    "training and delta": "refresh_s",
    "folding": "fold_s",
    "into service": "publish_s",
    "removing": "prune_s",
}
_SIZES = {"delta": "delta_bytes", "new version": "version_bytes", "removed": "pruned_bytes"}
_MARKED = 30  # days, above which a line's points are not marked


def days_section(run: Run) -> Section:
    """Quality, time, bytes and memory by day; for a run that has a loop."""
    days = run.loop
    anew = [day for day in days if day.retrained]
    text = [
        f"{len(days):,} days, {days[0].day} to {days[-1].day}, each made into a version of its own. AUC is that of the "
        "model of the day before on the day's random sessions, which it has not seen; "
        "memory is the most that the process and its largest child held since the loop was started."
    ]
    if anew:
        text.append(f"A dotted line is a day on which all was trained anew: {', '.join(day.day for day in anew)}.")
    drawn = (_quality(days), _seconds(days), _sizes(days), _memory(days))
    return Section("loop", "The loop", tuple(text), (Part(drawn), Part((_table(days),), "Every day")))


def _quality(days: Sequence[LoopDay]) -> Plot:
    responses = list(days[-1].quality)
    rows: list[Row] = [
        {"day": day.day, "response": response, "AUC": figures["auc"]}
        for day in days
        for response, figures in day.quality.items()
    ]
    lines = (
        chart_of(rows)
        .mark_line(point=_points(days))
        .encode(
            x=_axis(days),
            y=alt.Y("AUC:Q", scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=6)),
            color=alt.Color("response:N", scale=legend(responses, _colours(len(responses)))),
        )
    )
    ends = (f"{r}: {days[0].quality[r]['auc']:.4f} to {days[-1].quality[r]['auc']:.4f}" for r in days[0].quality)
    label = "AUC on the first and the last day. " + "; ".join(ends)
    return draw(_anew(days) + lines, "loop-quality", "AUC by day, of the model before it", label)


def _seconds(days: Sequence[LoopDay]) -> Plot:
    steps = {step: name for step, name in _STEPS.items() if any(getattr(day, name) for day in days)}
    rows: list[Row] = [
        {"day": day.day, "step": step, "order": i, "seconds": getattr(day, name)}
        for day in days
        for i, (step, name) in enumerate(steps.items())
    ]
    chart = (
        chart_of(rows)
        .mark_bar()
        .encode(
            x=_axis(days),
            y=alt.Y("seconds:Q", title="seconds", axis=alt.Axis(format="~s", tickCount=6)),
            color=alt.Color("step:N", scale=legend(list(steps), HUES), legend=alt.Legend(columns=3)),
            order="order:Q",
        )
    )
    means = (f"{step} {sum(getattr(day, name) for day in days) / len(days):.1f} s" for step, name in steps.items())
    return draw(chart, "loop-seconds", "Seconds by step", "Means of a day: " + ", ".join(means))


def _sizes(days: Sequence[LoopDay]) -> Plot:
    rows: list[Row] = [
        {"day": day.day, "what": what, "MB": getattr(day, name) / 1e6}
        for day in days
        for what, name in _SIZES.items()
        if getattr(day, name) > 0
    ]
    scale, ticks = log_axis([row["MB"] for row in rows])
    lines = (
        chart_of(rows)
        .mark_line(point=_points(days))
        .encode(
            x=_axis(days),
            y=alt.Y("MB:Q", title="MB", scale=scale, axis=alt.Axis(values=ticks, format="~g")),
            color=alt.Color("what:N", scale=legend(list(_SIZES), (BLUE, VERMILION, GREY))),
        )
    )
    means = (f"{what} {sum(getattr(day, n) for day in days) / len(days) / 1e6:.2f} MB" for what, n in _SIZES.items())
    return draw(_anew(days) + lines, "loop-sizes", "Bytes written and removed", "Means of a day: " + ", ".join(means))


def _memory(days: Sequence[LoopDay]) -> Plot:
    rows: list[Row] = [{"day": day.day, "GB": day.peak_memory_bytes / 1e9} for day in days]
    lines = (
        chart_of(rows)
        .mark_line(color=BLUE, point=_points(days))
        .encode(x=_axis(days), y=alt.Y("GB:Q", title="GB", scale=alt.Scale(domainMin=0), axis=alt.Axis(tickCount=6)))
    )
    label = f"Peak memory: {rows[0]['GB']:.2f} GB on the first day, {rows[-1]['GB']:.2f} GB on the last"
    return draw(_anew(days) + lines, "loop-memory", "Peak memory", label)


def _table(days: Sequence[LoopDay]) -> Table:
    steps = {step: name for step, name in _STEPS.items() if step != "removing"}
    rows = tuple(
        (
            day.day[5:],
            day.bundle,
            f"{day.rows:,}",
            *(number(seconds, 1) if (seconds := getattr(day, name)) else "–" for name in steps.values()),
            *(number(getattr(day, name) / 1e6, 2) for name in _SIZES.values()),
            number(day.peak_memory_bytes / 1e9, 2),
        )
        for day in days
    )
    heads = ("day", "version", "impressions", *(f"{s}, s" for s in steps), *(f"{s}, MB" for s in _SIZES), "peak GB")
    return Table("What every day took", heads, rows, ("version",))


def _axis(days: Sequence[LoopDay]) -> Any:
    # Month and day: the section names the year.
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelExpr="slice(datum.label, 5)", ticks=False)
    return alt.X("day:O", title=None, sort=[day.day for day in days], axis=axis)


def _anew(days: Sequence[LoopDay]) -> Any:
    rows: list[Row] = [{"day": day.day} for day in days if day.retrained]
    return chart_of(rows).mark_rule(color="#888", strokeDash=[2, 3]).encode(x=_axis(days))


def _points(days: Sequence[LoopDay]) -> Any:
    return {"filled": True, "size": 36} if len(days) <= _MARKED else False


def _colours(number: int) -> list[str]:
    return [HUES[i % len(HUES)] for i in range(number)]
