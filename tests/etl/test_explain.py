"""What --explain tells is what the run then does."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import DataError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.explain import explain
from sparsefeed.etl.pipeline import run
from tests import logs

CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), partition_rows=100)


def test_stages_rows_tasks_and_sizes_are_those_of_the_run(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=60)
    before = sorted(tmp_path.rglob("*"))
    stages = {stage.name: stage for stage in explain(logs.spec(), root, CONFIG)}
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written
    assert list(stages) == ["repeats", "actions", "fit", "train", "eval"]
    summary = run(logs.spec(), root, tmp_path / "etl", CONFIG)
    assert stages["train"].rows == stages["fit"].rows == summary["num_train_rows"] == 480
    assert stages["eval"].rows == summary["num_eval_rows"] == 240
    assert stages["repeats"].rows == 720
    for name in ("train", "eval"):
        files = sorted((tmp_path / "etl" / name).glob("*.parquet"))
        assert stages[name].tasks == len(files)
        written = sum(group.total_byte_size for f in files for group in row_groups(f))
        assert 0.2 * stages[name].written_bytes < written < 3 * stages[name].written_bytes  # of tiny files, headers
        assert stages[name].kept
    assert not stages["fit"].kept
    whole = sum(path.stat().st_size for path in root.glob("impressions/*/*.parquet"))
    assert 0.3 * whole < stages["train"].read_bytes + stages["eval"].read_bytes < whole
    assert stages["repeats"].read_bytes < 0.3 * whole


def test_days_before_train_from_are_fitted_and_not_written(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=60)
    config = CONFIG.model_copy(update={"train_from": date(2026, 11, 3)})
    stages = {stage.name: stage for stage in explain(logs.spec(), root, config)}
    assert (stages["fit"].rows, stages["train"].rows, stages["eval"].rows) == (480, 240, 240)
    assert stages["fit"].tasks == 2 * stages["train"].tasks
    assert run(logs.spec(), root, tmp_path / "etl", config)["num_train_rows"] == 240


def row_groups(path: Path) -> list[pq.RowGroupMetaData]:
    footer = pq.read_metadata(path)
    return [footer.row_group(i) for i in range(footer.num_row_groups)]


def test_logs_that_the_run_would_refuse_are_refused(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=4)
    logs.change(root / "impressions" / "day=2026-11-02" / "part-000.parquet", post_id=None)
    with pytest.raises(DataError, match='column "post_id" is missing'):
        explain(logs.spec(), root, CONFIG)
