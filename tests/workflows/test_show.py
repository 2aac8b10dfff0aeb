"""Tables of the command line."""

from __future__ import annotations

from typing import Any

import pytest

from sparsefeed.workflows.show import show_loop_day, show_quality, show_slices
from tests.workflows.report.conftest import cut, evaluation
from tests.workflows.report.test_days import day


def shown(capsys: pytest.CaptureFixture[str], show: Any, result: dict[str, Any]) -> list[list[str]]:
    show(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.split() for line in lines]


def test_quality_is_shown_against_the_truth_with_the_order_within_members(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, show_quality, evaluation())

    assert ["click", "sparsefeed", "0.6700", "0.6400", "0.7100", "0.3500", "0.970"] in lines
    assert lines[0][1:] == ["impressions", "of", "random", "sessions"]


def test_a_feed_without_random_sessions_is_not_said_to_be_measured_on_some(capsys: pytest.CaptureFixture[str]) -> None:
    show_quality(evaluation(), random=False)
    assert capsys.readouterr().out.splitlines()[0].split()[1:] == ["impressions"]


def test_slices_show_the_model_and_the_best_baseline_in_the_width_of_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = evaluation()
    part = cut(28510, 0.0)
    models = part["responses"]["click"]
    part["responses"] = dict.fromkeys(("click", "like", "comment", "reshare"), models)
    value["responses"] = dict.fromkeys(part["responses"], value["responses"]["click"])
    value["slices"] = {"position": {"not logged": part}}

    lines = shown(capsys, show_slices, value)

    assert lines[-1] == ["position", "not", "logged", "28,510", *["0.670/0.620"] * 4]
    assert lines[0][:3] == ["AUC", "of", "sparsefeed/lightgbm"]


def test_an_auc_that_is_not_defined_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    value = evaluation()
    value["slices"]["position"]["1"]["responses"]["like"]["ips"]["expected"]["auc"] = float("nan")

    assert shown(capsys, show_slices, value)[-3][-1] == "–/0.620"


def test_a_day_of_the_loop_is_one_line_of_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    show_loop_day(day(4))
    show_loop_day(day(5, retrain_s=9.0, publish_s=1.5, pruned_bytes=7_100_000))
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "2026-11-04: bundle 20261104-aaaa; ETL 2.0 s, training and delta 3.0 s; delta 2.0 MB, removed 0.0 MB; "
        "AUC of the day before's model: click 0.6400, like 0.5400"
    )
    assert (
        "ETL 2.0 s, a new base 9.0 s, training and delta 3.0 s, publishing 1.5 s; delta 2.0 MB, removed 7.1" in second
    )
