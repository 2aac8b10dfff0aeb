from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sparsefeed.workflows.report.run import Run, read_run
from sparsefeed.workflows.report.verdict import figures, summary
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.report import conftest as hand


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = Workspace(tmp_path_factory.mktemp("verdict") / "run")
    hand.fill(place)
    return read_run(place)


def judged(workspace: Workspace, change: dict[str, dict[str, Any] | None]) -> Run:
    """The run with the quality of some models of `click` changed; None takes a model away from every response."""
    value = hand.evaluation()
    for models in value["responses"].values():
        for model, quality in change.items():
            if quality is None:
                del models[model]
            elif models is value["responses"]["click"]:
                models[model]["expected"] |= quality
    workspace.evaluation.write_text(json.dumps(value))
    return read_run(workspace)


def test_the_figures_are_those_of_the_first_response(run: Run) -> None:
    assert [(figure.value, figure.meaning) for figure in figures(run)] == [
        ("0.97", "predicted / actual of click, IPS weights"),
        ("1.48", "predicted / actual of click, no weights"),
        ("0.670", "AUC of click; LightGBM without ids 0.620"),
        ("3.5 ms", "median for 100 posts, 1 in flight"),
    ]


def test_a_run_that_has_not_begun_has_no_figures(tmp_path: Path) -> None:
    run = read_run(Workspace(tmp_path))

    assert figures(run) == ()
    assert summary(run) == "This page shows one run of sparsefeed, from impression logs to a served feed ranker."


@pytest.mark.parametrize(
    ("part", "word"),
    [("etl", "learned"), ("evaluation", "predicted/actual"), ("bench", "Triton"), ("served", "int8")],
)
def test_what_was_not_made_is_not_spoken_of(run: Run, part: str, word: str) -> None:
    missing: Any = None

    assert word in summary(run)
    assert word not in summary(dataclasses.replace(run, **{part: missing}))


def test_a_run_without_weights_is_told_alone(workspace: Workspace) -> None:
    run = judged(workspace, {"ips": None})

    assert "predicted/actual of click is 1.48 without (all responses: 1.48 to 1.63); 1 is unbiased." in summary(run)
    assert "AUC of click: 0.660 against 0.620" in summary(run)
    assert [figure.value for figure in figures(run)] == ["1.48", "0.660", "3.5 ms"]


def test_a_run_without_lightgbm_compares_with_nothing(workspace: Workspace) -> None:
    run = judged(workspace, {"lightgbm": None})

    assert "LightGBM" not in summary(run)
    assert [figure.value for figure in figures(run)] == ["0.97", "1.48", "3.5 ms"]


def test_an_equal_auc_is_not_better(workspace: Workspace) -> None:
    run = judged(workspace, {"lightgbm": {"auc": hand.AUCS["ips"] + 0.01}})

    assert "on 1 of 2 responses (AUC of click: 0.670 against 0.670)" in summary(run)


def test_memory_is_the_sum_over_tables(workspace: Workspace) -> None:
    index = workspace.bundles / "versions" / "v1" / "tables" / "tables.json"
    rows = 1_000_000
    tables = [{"name": n, "dim": 16, "rows": rows, "row_format": "int8"} for n in ("member", "post")]
    index.write_text(json.dumps({"format": 1, "tables": tables}))

    assert "The embedding tables are 128.0 MB as fp32 rows and 48.0 MB as int8 rows." in summary(read_run(workspace))


def test_several_requests_in_flight_are_counted(workspace: Workspace) -> None:
    value = hand.bench()
    value["loads"].reverse()
    workspace.bench.write_text(json.dumps(value))

    assert "ranking 500 posts takes 9.5 ms at the median" in summary(read_run(workspace))
    assert "with 4 requests in flight" in summary(read_run(workspace))


def test_one_day_is_not_days(workspace: Workspace) -> None:
    (workspace.etl / "etl.json").write_text(json.dumps({**hand.etl(), "train_days": ["2026-11-01"]}))

    assert "impressions of 1 day; 30 member" in summary(read_run(workspace))


def test_random_sessions_are_spoken_of_only_where_they_are_declared(run: Run) -> None:
    spec = hand.SPEC.model_copy(update={"sessions": None, "ips": "none"})

    assert "On 700 held-out impressions of random sessions, predicted" in summary(run)
    assert "On 700 held-out impressions, predicted" in summary(dataclasses.replace(run, spec=spec))
