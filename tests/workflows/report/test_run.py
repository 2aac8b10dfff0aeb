from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, BundleError, DataError, SpecError
from sparsefeed.workflows.report.run import read_run
from sparsefeed.workflows.report.sections import session_counts
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.report import conftest as hand


def test_a_whole_run_is_read(workspace: Workspace) -> None:
    run = read_run(workspace)

    assert run.spec == hand.SPEC
    assert run.etl is not None
    assert run.etl.num_ids == {"member": 30, "post": 90}
    assert run.ips is not None
    assert len(run.ips) == 16
    assert [point.samples for point in run.curves["none"]] == [100, 200, 400]
    assert run.evaluation is not None
    assert run.evaluation.responses["click"]["none"].predicted_over_actual == 1.47
    assert run.served is not None
    assert run.served.manifest.id == "v1"
    assert run.bench is not None
    assert run.bench.loads[1].p50_ms == 9.5
    assert run.ranking is not None
    assert run.ranking.posts[2].after == 2


def test_of_sampled_strata_the_whole_one_is_read(workspace: Workspace) -> None:
    whole = [{**cell, "stratum": 0} for cell in hand.ips_cells()]
    sampled = [{**cell, "stratum": 1, "weight": 10 * cell["weight"]} for cell in whole]
    correction = {**sampled[0], "surface": "", "position": 0, "reason": "sampling"}
    pq.write_table(pa.Table.from_pylist([correction, *whole, *sampled]), workspace.etl / "ips.parquet")

    run = read_run(workspace)

    assert run.ips is not None
    assert len(run.ips) == 16
    assert max(cell.weight for cell in run.ips) < 2
    assert session_counts(run.ips)["click"].num_random == 400


def test_an_empty_workspace_holds_nothing(tmp_path: Path) -> None:
    run = read_run(Workspace(tmp_path))

    parts = (run.spec, run.simulation, run.etl, run.ips, run.evaluation, run.served, run.bench, run.ranking)
    assert parts == (None,) * 8
    assert not run.curves


def test_a_workspace_that_is_not_there_is_an_error_that_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: not there; run `sparsefeed demo`"):
        read_run(Workspace(tmp_path / "nowhere"))


def test_an_etl_without_its_last_file_is_not_read(workspace: Workspace) -> None:
    (workspace.etl / "etl.json").unlink()

    run = read_run(workspace)

    assert (run.spec, run.etl, run.ips) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("logs/simulation.json", "simulate"),
        ("etl/etl.json", "etl"),
        ("etl/ips.parquet", "etl"),
        ("training/ips/curve.jsonl", "train --weights ips"),
        ("evaluation.json", "eval"),
        ("bench.json", "bench"),
        ("ranking.json", "bench"),
        ("bundles/versions/v1/tables/tables.json", "export"),
    ],
)
def test_a_file_cut_in_half_is_named_with_the_command_that_makes_it(
    workspace: Workspace, name: str, command: str
) -> None:
    path = workspace.root / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(BadFileError) as caught:
        read_run(workspace)

    assert caught.value.path == str(path)
    assert f"`sparsefeed {command}`" in str(caught.value)


def test_a_missing_field_is_named_by_its_path(workspace: Workspace) -> None:
    value = hand.bench()
    del value["loads"][1]["steps"][2]["queue_ms"]
    workspace.bench.write_text(json.dumps(value))

    with pytest.raises(BadFileError, match=r"bench\.json: loads\[1\]\.steps\[2\]\.queue_ms: Field required"):
        read_run(workspace)


def test_a_weight_table_without_a_column_names_row_and_column(workspace: Workspace) -> None:
    cells = [{k: v for k, v in cell.items() if k != "reason"} for cell in hand.ips_cells()]
    pq.write_table(pa.Table.from_pylist(cells), workspace.etl / "ips.parquet")

    with pytest.raises(BadFileError, match=r"ips\.parquet: \[0\]\.reason: Field required"):
        read_run(workspace)


def test_a_current_that_names_no_bundle_is_an_error(workspace: Workspace) -> None:
    (workspace.bundles / "current").write_text("v9\n")

    with pytest.raises(BundleError, match=r'"v9" is no READY version; there are: v1'):
        read_run(workspace)


def test_an_etl_without_its_spec_is_an_error(workspace: Workspace) -> None:
    (workspace.etl / "spec.json").unlink()

    with pytest.raises(SpecError, match=r"spec\.json: not readable"):
        read_run(workspace)


def test_an_undefined_metric_is_read_as_nan(workspace: Workspace) -> None:
    value = hand.evaluation()
    value["responses"]["like"]["ips"]["auc"] = float("nan")
    workspace.evaluation.write_text(json.dumps(value))

    run = read_run(workspace)

    assert run.evaluation is not None
    assert math.isnan(run.evaluation.responses["like"]["ips"].auc)


def test_quality_is_told_on_the_truth_only_where_every_model_has_it(workspace: Workspace) -> None:
    known = read_run(workspace).evaluation
    value = hand.evaluation()
    del value["responses"]["like"]["constant"]["expected"]
    workspace.evaluation.write_text(json.dumps(value))
    partly = read_run(workspace).evaluation

    assert known is not None
    assert known.best_known["click"]["ips"].predicted_over_actual == pytest.approx(0.97)
    assert partly is not None
    assert partly.expected == {}
    assert partly.best_known["click"]["ips"].predicted_over_actual == pytest.approx(0.96)


def test_int8_rows_cost_eight_bytes_more_than_their_values(workspace: Workspace) -> None:
    served = read_run(workspace).served

    assert served is not None
    assert [(t.name, t.bytes_fp32, t.bytes_int8) for t in served.tables] == [
        ("member", 64 * 4 * 4, 64 * 12),
        ("post", 64 * 8 * 4, 64 * 16),
    ]


def test_session_counts_sum_surfaces_and_positions(workspace: Workspace) -> None:
    run = read_run(workspace)

    assert run.ips is not None
    counts = session_counts(run.ips)

    assert list(counts) == ["click", "like"]
    assert (counts["click"].num_random, counts["click"].num_production) == (400, 1200)
    assert counts["click"].rates == (0.1, 0.2)
    assert counts["like"].rates == (0.05, 0.1)
