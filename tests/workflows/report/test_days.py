"""The loop's section: there when a loop ran, and drawn of its lines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsefeed.errors import ReleaseError
from sparsefeed.workflows.loop import LoopDay
from sparsefeed.workflows.report import write_report
from sparsefeed.workflows.report.chart import Plot
from sparsefeed.workflows.report.run import read_run
from sparsefeed.workflows.report.section import Section, Table
from sparsefeed.workflows.report.sections import all_sections
from sparsefeed.workflows.workspace import Workspace


def day(number: int, **changes: object) -> LoopDay:
    value = LoopDay(
        day=f"2026-11-{number:02d}",
        bundle=f"202611{number:02d}-aaaa",
        rows=1000 * number,
        etl_s=2.0,
        refresh_s=3.0,
        publish_s=0.0,
        delta_bytes=2_000_000,
        version_bytes=5_000_000,
        peak_memory_bytes=1_500_000_000,
        quality={
            name: {"auc": auc + number / 100, "log_loss": 0.3, "predicted_over_actual": 1.0}
            for name, auc in (("click", 0.6), ("like", 0.5))
        },
    )
    return LoopDay(**{**asdict(value), **changes})


def looped(place: Workspace, *days: LoopDay) -> Section:
    place.loop.write_text("".join(json.dumps(asdict(one)) + "\n" for one in days))
    return all_sections(read_run(place))[-1]


def plots(found: Section) -> dict[str, Plot]:
    return {item.title: item for part in found.parts for item in part.items if isinstance(item, Plot)}


def test_a_run_without_a_loop_says_nothing_of_one(workspace: Workspace) -> None:
    assert "loop" not in {found.anchor for found in all_sections(read_run(workspace))}


def test_quality_seconds_bytes_and_memory_are_drawn_by_day(workspace: Workspace) -> None:
    found = looped(workspace, day(4), day(5, retrained=True, retrain_s=9.0, pruned_bytes=7_000_000), day(6))
    assert (found.anchor, found.title) == ("loop", "The loop")
    assert found.text[0].startswith("3 days, 2026-11-04 to 2026-11-06")
    assert found.text[1] == "A dotted line is a day on which all was trained anew: 2026-11-05."
    drawn = plots(found)
    quality = drawn["AUC by day, of the model before it"]
    assert quality.label == "AUC on the first and the last day. click: 0.6400 to 0.6600; like: 0.5400 to 0.5600"
    assert quality.svg.count('aria-roledescription="point"') == 6
    assert quality.svg.count('stroke-dasharray="2,3"') == 1
    seconds = drawn["Seconds by step"]
    assert seconds.label == "Means of a day: ETL and judging 2.0 s, a new base 3.0 s, training and delta 3.0 s"
    assert drawn["Bytes written and removed"].label.endswith("delta 2.00 MB, new version 5.00 MB, removed 2.33 MB")
    assert drawn["Peak memory"].label == "Peak memory: 1.50 GB on the first day, 1.50 GB on the last"
    (table,) = (item for part in found.parts for item in part.items if isinstance(item, Table))
    assert table.rows[1][:8] == ("11-05", "20261105-aaaa", "5,000", "2.0", "9.0", "3.0", "–", "–")
    assert {len(row) for row in table.rows} == {len(table.heads)}


def test_a_month_of_days_is_a_bare_line_and_one_day_is_a_point(workspace: Workspace) -> None:
    month = looped(workspace, *(day(number) for number in range(1, 31)), day(31))
    assert len(month.text) == 1
    assert 'aria-roledescription="point"' not in plots(month)["Peak memory"].svg
    assert plots(looped(workspace, day(1)))["Peak memory"].svg.count('aria-roledescription="point"') == 1


def test_the_page_holds_the_section_and_a_damaged_line_is_named(workspace: Workspace, tmp_path: Path) -> None:
    looped(workspace, day(4), day(5))
    assert '<section id="loop">' in write_report(workspace).read_text("utf-8")
    workspace.loop.write_text('{"day": 1}\n')
    with pytest.raises(ReleaseError, match=r"loop\.jsonl: line 1: .*; remove the file"):
        read_run(workspace)
