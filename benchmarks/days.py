"""Thirty days added one by one to an ETL result: time, bytes and pieces of state a day, beside one run over all."""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
from results import Recorder, Row

from sparsefeed.etl.cluster import open_cluster
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.logs import days_of
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.simulate import simulate
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress
from sparsefeed.workflows.report.chart import BLUE, GREY

__all__ = ["Day", "added", "days", "draw"]

NUM_DAYS = 30


@dataclass(frozen=True)
class Day:
    """What adding a day took."""

    day: int
    rows: int
    seconds: float
    new_bytes: int  # of files that no earlier day has


def added(spec: FeedSpec, logs: Path, out: Path, config: EtlConfig, progress: Progress) -> list[Day]:
    """Make a result of the first day of logs, then add all others but the last, which has no day after it."""
    known = days_of(logs)
    run(spec, logs, out / "etl", config.model_copy(update={"until": known[1]}))
    chain = AddedDays(out / "etl", out / "etl-days")
    measured = []
    for number, day in enumerate(known[1:-1], 1):
        progress(number, len(known) - 2, f"adding {day}")
        started = time.perf_counter()
        summary = chain.add(spec, logs, day, config)
        seconds = time.perf_counter() - started
        files = [path.stat() for path in (chain.folder / str(day)).rglob("*") if path.is_file()]
        new_bytes = sum(file.st_size for file in files if file.st_nlink == 1)
        measured.append(Day(number, summary["num_train_rows"], seconds, new_bytes))
    return measured


def days(record: Recorder, spec: FeedSpec, simulation: Any, folder: Path, plot: Path, progress: Progress) -> list[Row]:
    """Rows of what a day costs early and late, of one run over all days, and the plot.

    Args:
        record: makes the rows.
        spec: the declaration.
        simulation: of the logs; its number of days is set here.
        folder: of logs and results; the results are removed.
        plot: file of the plot.
        progress: told of every day.
    """
    logs = folder / "logs"
    simulate(simulation.model_copy(update={"days": NUM_DAYS + 2}), logs)
    shutil.rmtree(folder / "out", ignore_errors=True)
    # A day of so few rows is quickest in this process; one run over all has work for two workers.
    alone = EtlConfig(cluster=ClusterConfig(workers=0, gpu=False))
    measured = added(spec, logs, folder / "out", alone, progress)
    with open_cluster(ClusterConfig(workers=2, gpu=False)) as client:
        config = EtlConfig(cluster=ClusterConfig(address=client.scheduler.address, gpu=False))
        progress(NUM_DAYS, NUM_DAYS, "one run over all days")
        started = time.perf_counter()
        run(spec, logs, folder / "out" / "whole", config)
        seconds = time.perf_counter() - started
    shutil.rmtree(folder / "out")
    share = seconds / (NUM_DAYS + 2)  # the last day is held out
    draw(measured, share, plot)
    early, late = measured[:10], measured[-10:]

    def median(some: list[Day], name: str) -> float:
        return statistics.median(getattr(day, name) / day.rows for day in some)

    return [
        record.row(
            "adding a day", "time of days 21 to 30", 1e6 * median(late, "seconds"), "us/row", "days 1 to 10",
            1e6 * median(early, "seconds"),
        ),
        record.row(
            "adding a day", "bytes of days 21 to 30", median(late, "new_bytes"), "B/row", "days 1 to 10",
            median(early, "new_bytes"),
        ),
        record.row(
            "adding a day", "seconds", statistics.median(day.seconds for day in measured), "s",
            "a day's share of one run over all", share,
        ),
    ]  # fmt: skip


def draw(measured: list[Day], share: float, path: Path) -> None:
    """Seconds by day, beside a day's share of one run over all days."""
    values = [{"day": day.day, "seconds": day.seconds} for day in measured]
    line = (
        alt.Chart(alt.Data(values=values), width=620, height=230)
        .mark_line(strokeWidth=2, color=BLUE, point=alt.OverlayMarkDef(color=BLUE, size=25))
        .encode(
            x=alt.X("day:Q", title="day added", axis=alt.Axis(values=[1, 5, 10, 15, 20, 25, 30], grid=False)),
            y=alt.Y("seconds:Q", title="seconds", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5)),
        )
    )
    marks = alt.Chart(
        alt.Data(values=[{"share": share, "text": "a day's share of one run over all days, on two workers"}])
    )
    rule = marks.mark_rule(color=GREY, strokeDash=[3, 3]).encode(y="share:Q")
    text = marks.mark_text(align="left", dx=4, dy=-7, fontSize=12, color="#555")
    chart = line + rule + text.encode(x=alt.value(0), y="share:Q", text="text:N")
    chart = chart.configure(font="Helvetica, Arial, sans-serif", background="white", padding=8)
    chart = chart.configure_view(stroke=None)
    chart = chart.configure_axis(gridColor="#e4e4e4", labelFontSize=13, titleFontSize=13, titleFontWeight="normal")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(path)
